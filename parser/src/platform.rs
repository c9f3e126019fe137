//! `os/architecture[/variant]` as the language sees it, normalised as containerd does.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A platform of the OCI image specification.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Platform {
    /// `linux`, `windows` …
    pub os: String,
    /// Go's name of the architecture: `amd64`, `arm64`, `arm` …
    pub architecture: String,
    /// `v7` and the like; empty where there is none.
    pub variant: String,
}

/// Why a text is no platform.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("\"{text}\" is an invalid platform: {reason}")]
pub struct PlatformError {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl Platform {
    /// The platform that this program runs on.
    #[must_use]
    pub fn host() -> Self {
        normalise("linux", std::env::consts::ARCH, "")
    }

    /// `os/arch[/variant]`, the form that BUILDPLATFORM and TARGETPLATFORM have.
    #[must_use]
    pub fn text(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let error = |reason| PlatformError { text: text.to_owned(), reason };
        if text == "local" {
            return Ok(Self::host());
        }
        let lower = text.to_lowercase();
        let parts: Vec<&str> = lower.split('/').collect();
        let allowed = |part: &&str| {
            !part.is_empty()
                && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
        };
        if !parts.iter().all(allowed) {
            return Err(error("a part is empty or has a character that is not allowed"));
        }
        match parts.as_slice() {
            [one] if is_os(one) => Ok(normalise(one, std::env::consts::ARCH, "")),
            [one] if is_architecture(one) => Ok(normalise("linux", one, "")),
            [_] => Err(error("unknown operating system or architecture")),
            [os, architecture] => Ok(normalise(os, architecture, "")),
            [os, architecture, variant] => Ok(normalise(os, architecture, variant)),
            _ => Err(error("cannot parse platform specifier")),
        }
    }
}

fn is_os(word: &str) -> bool {
    matches!(
        word,
        "linux"
            | "windows"
            | "darwin"
            | "macos"
            | "freebsd"
            | "netbsd"
            | "openbsd"
            | "solaris"
            | "wasip1"
            | "js"
    )
}

fn is_architecture(word: &str) -> bool {
    matches!(
        word,
        "amd64"
            | "x86_64"
            | "x86-64"
            | "386"
            | "i386"
            | "arm"
            | "armhf"
            | "armel"
            | "arm64"
            | "aarch64"
            | "ppc64"
            | "ppc64le"
            | "s390x"
            | "riscv64"
            | "mips"
            | "mipsle"
            | "mips64"
            | "mips64le"
            | "loong64"
            | "wasm"
    )
}

/// Aliases and default variants (containerd's platforms package, `normalizeArch`).
fn normalise(os: &str, architecture: &str, variant: &str) -> Platform {
    let os = if os == "macos" { "darwin" } else { os };
    let (architecture, variant) = match (architecture, variant) {
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64", variant) => ("amd64", variant),
        ("i386" | "x86", _) => ("386", ""),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
        ("aarch64", variant) => ("arm64", variant),
        ("armhf", _) => ("arm", "v7"),
        ("armel", _) => ("arm", "v6"),
        ("arm", "" | "7") => ("arm", "v7"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "6") => ("arm", "v6"),
        ("arm", "8") => ("arm", "v8"),
        other => other,
    };
    Platform {
        os: os.to_owned(),
        architecture: architecture.to_owned(),
        variant: variant.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::Platform;

    #[test]
    fn normal_forms() {
        for (text, expect) in [
            ("linux/amd64", "linux/amd64"),
            ("Linux/x86_64", "linux/amd64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/armel", "linux/arm/v6"),
            ("arm64", "linux/arm64"),
            ("linux/amd64/v2", "linux/amd64/v2"),
        ] {
            assert_eq!(text.parse::<Platform>().expect(text).to_string(), expect);
        }
        for text in ["", "a/b/c/d", "linux/", "nonsense", "linux/a b"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
