//! `--secret id=ID[,src=FILE|env=VARIABLE]`: where the bytes of `RUN --mount=type=secret` come from.
//! They are read when a step asks for them and are never part of an error, a log or a key.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::csv;
use crate::failure::{Failure, plain_io};

/// BuildKit's limit for one secret, in bytes.
const SECRET_BYTES_MAX: u64 = 500 * 1024;

/// The secrets of one build, by id.
#[derive(Debug, Default)]
pub(crate) struct Secrets {
    sources: BTreeMap<String, Source>,
}

enum Source {
    File(PathBuf),
    Variable { name: String, value: OsString },
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Variable { name, .. } => write!(f, "Variable({name})"),
        }
    }
}

impl Secrets {
    /// Reads the options. `variable` looks up the caller's environment.
    ///
    /// # Errors
    /// A malformed option, an unset variable, a file that is not there.
    pub(crate) fn parse(
        options: &[String],
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Failure> {
        let mut sources = BTreeMap::new();
        for option in options {
            let (id, source) = parse_one(option, &variable)?;
            sources.insert(id, source);
        }
        Ok(Self { sources })
    }

    /// The bytes of a secret, `None` where nobody gave one of that id.
    ///
    /// # Errors
    /// The file cannot be read or is too large.
    pub(crate) fn get(&self, id: &str) -> Result<Option<Vec<u8>>, String> {
        match self.sources.get(id) {
            None => Ok(None),
            Some(Source::Variable { value, .. }) => Ok(Some(value.clone().into_vec())),
            Some(Source::File(path)) => {
                let name = path.display();
                let file = std::fs::File::open(path).map_err(|e| {
                    format!("cannot read secret `{id}` from `{name}`: {}", plain_io(&e))
                })?;
                let mut bytes = Vec::new();
                file.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| {
                    format!("cannot read secret `{id}` from `{name}`: {}", plain_io(&e))
                })?;
                if bytes.len() as u64 > SECRET_BYTES_MAX {
                    return Err(format!("secret `{id}` is larger than {SECRET_BYTES_MAX} bytes"));
                }
                Ok(Some(bytes))
            }
        }
    }
}

fn parse_one(
    option: &str,
    variable: &impl Fn(&str) -> Option<OsString>,
) -> Result<(String, Source), Failure> {
    let bad = |why: &str| Failure::usage(format_args!("invalid --secret `{option}`: {why}"));
    let (mut id, mut file, mut env, mut kind) = (None, None, None, None);
    for field in csv::fields(option).map_err(|e| bad(&e))? {
        let Some(value) = field.value else {
            return Err(bad(&format!("field `{}` must be a key=value pair", field.key)));
        };
        match field.key.as_str() {
            "id" => id = Some(value),
            "src" | "source" => file = Some(value),
            "env" => env = Some(value),
            "type" if matches!(value.as_str(), "file" | "env") => kind = Some(value),
            "type" => {
                return Err(
                    bad(&format!("unsupported secret type `{value}`")).hint("types: file, env")
                );
            }
            key => {
                return Err(
                    bad(&format!("unexpected key `{key}`")).hint("keys: id, src, env, type")
                );
            }
        }
    }
    let id = id.filter(|id| !id.is_empty()).ok_or_else(|| bad("id is required"))?;
    if kind.as_deref() == Some("env") && env.is_none() {
        env = file.take();
    }
    let source = match (file, env) {
        (Some(_), Some(_)) => return Err(bad("src and env exclude each other")),
        (Some(file), None) => Source::File(file.into()),
        (None, Some(name)) => from_variable(&name, variable)
            .ok_or_else(|| bad(&format!("environment variable `{name}` is not set")))?,
        (None, None) => match kind.as_deref() {
            Some("env") => from_variable(&id, variable)
                .ok_or_else(|| bad(&format!("environment variable `{id}` is not set")))?,
            Some(_) => Source::File(id.clone().into()),
            None => from_variable(&id, variable).unwrap_or_else(|| Source::File(id.clone().into())),
        },
    };
    if let Source::File(path) = &source
        && !path.exists()
    {
        return Err(bad(&format!("file `{}` does not exist", path.display())));
    }
    Ok((id, source))
}

fn from_variable(name: &str, variable: &impl Fn(&str) -> Option<OsString>) -> Option<Source> {
    variable(name).map(|value| Source::Variable { name: name.to_owned(), value })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::Secrets;

    fn environment(name: &str) -> Option<OsString> {
        (name == "TOKEN").then(|| "swordfish".into())
    }

    fn get(option: &str, id: &str) -> Option<Vec<u8>> {
        Secrets::parse(&[option.to_owned()], environment).expect(option).get(id).expect("readable")
    }

    #[test]
    fn variables_and_files() {
        assert_eq!(get("id=t,env=TOKEN", "t").as_deref(), Some(&b"swordfish"[..]));
        assert_eq!(get("id=TOKEN", "TOKEN").as_deref(), Some(&b"swordfish"[..]));
        assert_eq!(get("type=env,id=a,src=TOKEN", "a").as_deref(), Some(&b"swordfish"[..]));
        assert_eq!(get("id=t,env=TOKEN", "other"), None);
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), "x").expect("written");
        let option = format!("id=f,src={}", file.path().display());
        assert_eq!(get(&option, "f").as_deref(), Some(&b"x"[..]));
    }

    #[test]
    fn mistakes_are_named_and_values_are_not() {
        for (option, word) in [
            ("src=a", "id is required"),
            ("id=a,env=UNSET", "not set"),
            ("id=a,src=/nowhere/at/all", "does not exist"),
            ("id=a,src=x,env=TOKEN", "exclude"),
            ("id=a,colour=red", "unexpected key"),
            ("id=a,type=vault", "unsupported secret type"),
        ] {
            let error =
                Secrets::parse(&[option.to_owned()], environment).expect_err(option).to_string();
            assert!(error.contains(word), "{option}: {error}");
        }
        let secrets = Secrets::parse(&["id=t,env=TOKEN".to_owned()], environment).expect("valid");
        assert!(!format!("{secrets:?}").contains("swordfish"));
    }
}
