//! Steps for other machines: what to install when their programs cannot be executed here.

use kiln_parser::platform::Platform;
use kiln_solver::ports::{Kind, StepError};

/// QEMU's name of an architecture, as its user-mode emulators and binfmt_misc entries are called.
fn qemu_name(platform: &Platform) -> &str {
    match (platform.architecture.as_str(), platform.variant.as_str()) {
        ("amd64", _) => "x86_64",
        ("386", _) => "i386",
        ("arm64", _) => "aarch64",
        ("ppc64le", _) => "ppc64le",
        ("mips64le", _) => "mips64el",
        ("loong64", _) => "loongarch64",
        (other, _) => other,
    }
}

/// Whether a kernel of `host` executes programs of `platform` by itself.
fn is_native(host: &Platform, platform: &Platform) -> bool {
    let native: &[&str] = match host.architecture.as_str() {
        "amd64" => &["amd64", "386"],
        "arm64" => &["arm64", "arm"],
        _ => &[],
    };
    host.architecture == platform.architecture || native.contains(&platform.architecture.as_str())
}

/// Adds what to install where a step failed because its programs are for another machine.
pub(super) fn explain(error: StepError, platform: Option<&Platform>) -> StepError {
    let host = Platform::host();
    let Some(platform) = platform.filter(|platform| !is_native(&host, platform)) else {
        return error;
    };
    // execve(2) says ENOEXEC; a shell that meets it in a program says 126 with the same words.
    let refused = error.message.contains("exec format error") || error.message.ends_with(": 126");
    if error.kind != Kind::Command || !refused {
        return error;
    }
    let name = qemu_name(platform);
    let help = format!(
        "this machine ({host}) cannot execute programs for {platform}: install the package qemu-user-static (Debian, Ubuntu; it registers qemu-{name} with binfmt_misc), or run `docker run --privileged --rm tonistiigi/binfmt --install {}`",
        platform.architecture
    );
    StepError { help: Some(help), ..error }
}

#[cfg(test)]
mod tests {
    use kiln_parser::platform::Platform;
    use kiln_solver::ports::{Kind, StepError};

    use super::{explain, is_native};

    fn platform(text: &str) -> Platform {
        text.parse().expect("a platform")
    }

    #[test]
    fn only_foreign_programs_are_explained() {
        assert!(is_native(&platform("linux/amd64"), &platform("linux/386")));
        assert!(is_native(&platform("linux/arm64"), &platform("linux/arm/v7")));
        assert!(!is_native(&platform("linux/amd64"), &platform("linux/arm64")));
        let error = StepError::new(Kind::Command, "exec: \"/bin/sh\": exec format error");
        let foreign = platform("linux/s390x");
        let told = explain(error.clone(), Some(&foreign)).help.expect("a remedy");
        assert!(told.contains("qemu-user-static") && told.contains("qemu-s390x"), "{told}");
        assert_eq!(explain(error.clone(), Some(&Platform::host())).help, None);
        let other = StepError::new(Kind::Command, "exit code: 1");
        assert_eq!(explain(other, Some(&foreign)).help, None);
    }
}
