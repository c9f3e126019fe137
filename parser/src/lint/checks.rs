//! Which rules are on: `skip=A,B;error=true;experimental=all`, from `# check=` at the top of the file,
//! from the build argument `BUILDKIT_DOCKERFILE_CHECK`, and from comments above an instruction.

use std::collections::BTreeSet;

use super::rules::Rule;

/// A set of rules by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Names {
    #[default]
    None,
    Some(BTreeSet<String>),
    All,
}

impl Names {
    fn parse(text: &str) -> Self {
        match text.trim() {
            "all" => Self::All,
            names => Self::Some(names.split(',').map(|name| name.trim().to_owned()).collect()),
        }
    }

    fn contains(&self, name: &str) -> bool {
        match self {
            Self::None => false,
            Self::Some(names) => names.contains(name),
            Self::All => true,
        }
    }

    fn merge(&mut self, other: Self) {
        *self = match (std::mem::take(self), other) {
            (Self::All, _) | (_, Self::All) => Self::All,
            (Self::Some(a), Self::Some(b)) => Self::Some(a.union(&b).cloned().collect()),
            (Self::None, known) | (known, Self::None) => known,
        };
    }
}

/// What is on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    skip: Names,
    experimental: Names,
    /// Findings are errors.
    pub error: bool,
}

impl Checks {
    /// Reads `skip=…;error=…;experimental=…`.
    ///
    /// # Errors
    /// In BuildKit's words: a part without `=`, an unknown key, no boolean.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut checks = Self::default();
        for part in text.trim().splitn(3, ';').filter(|_| !text.trim().is_empty()) {
            let invalid = || format!("invalid check option {part:?}");
            let (key, value) = part.split_once('=').ok_or_else(invalid)?;
            match key.trim() {
                "skip" => checks.skip = Names::parse(value),
                "experimental" => checks.experimental = Names::parse(value),
                "error" => {
                    let value = value.trim();
                    checks.error = crate::mount::boolean(value).ok_or_else(|| {
                        format!("failed to parse check option {part:?}: {value:?} is no boolean")
                    })?;
                }
                _ => return Err(invalid()),
            }
        }
        Ok(checks)
    }

    /// These checks with those of a comment `check=…` above an instruction; `None` for any other
    /// comment. `error` counts for whole files only.
    pub(super) fn with_comment(&self, comment: &str) -> Option<Self> {
        let (key, value) = comment.split_once('=')?;
        if !key.trim().eq_ignore_ascii_case("check") {
            return None;
        }
        let own = Self::parse(value.split_whitespace().next().unwrap_or_default()).ok()?;
        let mut merged = self.clone();
        merged.skip.merge(own.skip);
        merged.experimental.merge(own.experimental);
        Some(merged)
    }

    /// Whether a rule is on: experimental ones by name alone, the others unless skipped.
    pub(super) fn is_on(&self, rule: &Rule) -> bool {
        if rule.experimental {
            return self.experimental.contains(rule.name);
        }
        !self.skip.contains(rule.name)
    }
}

#[cfg(test)]
mod tests {
    use super::Checks;
    use crate::lint::rules;

    #[test]
    fn options() {
        let checks = Checks::parse("skip=StageNameCasing, FromAsCasing;error=true").expect("valid");
        assert!(checks.error);
        assert!(!checks.is_on(&rules::STAGE_NAME_CASING) && !checks.is_on(&rules::FROM_AS_CASING));
        assert!(checks.is_on(&rules::UNDEFINED_VAR));
        assert!(!checks.is_on(&rules::INVALID_DEFINITION_DESCRIPTION));
        assert!(
            Checks::parse("experimental=all")
                .expect("valid")
                .is_on(&rules::INVALID_DEFINITION_DESCRIPTION)
        );
        assert!(!Checks::parse("skip=all").expect("valid").is_on(&rules::UNDEFINED_VAR));
        assert_eq!(Checks::parse("foo"), Err("invalid check option \"foo\"".to_owned()));
        assert_eq!(Checks::parse("foo=1"), Err("invalid check option \"foo=1\"".to_owned()));
        assert!(Checks::parse("error=maybe").is_err());
        assert_eq!(Checks::parse(""), Ok(Checks::default()));
    }

    #[test]
    fn comments_add() {
        let checks = Checks::parse("skip=StageNameCasing").expect("valid");
        let own = checks.with_comment("check=skip=UndefinedVar and why").expect("a check");
        assert!(!own.is_on(&rules::UNDEFINED_VAR) && !own.is_on(&rules::STAGE_NAME_CASING));
        assert_eq!(checks.with_comment("checked by hand"), None);
    }
}
