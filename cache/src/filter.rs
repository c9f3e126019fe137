//! Filters on what uses space: those of `docker buildx prune` and `du`.
//!
//! `name=value`, `name!=value`, `name~=regular expression`, a bare `name` for what is true of a thing (`inuse`,
//! `mutable`, `immutable`, `shared`, `private`, `reclaimable`). All filters of a list have to hold. Source: buildx
//! `commands/prune.go`, containerd `filters/parser.go`.

use std::str::FromStr;

use regex::Regex;

use crate::usage::UsageRow;

/// One condition.
#[derive(Debug, Clone)]
pub struct Filter {
    field: Field,
    test: Test,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Id,
    Parents,
    Description,
    Type,
    InUse,
    Mutable,
    Immutable,
    Shared,
    Private,
    Reclaimable,
}

const FIELDS: &[(&str, Field)] = &[
    ("id", Field::Id),
    ("parents", Field::Parents),
    ("description", Field::Description),
    ("type", Field::Type),
    ("inuse", Field::InUse),
    ("mutable", Field::Mutable),
    ("immutable", Field::Immutable),
    ("shared", Field::Shared),
    ("private", Field::Private),
    ("reclaimable", Field::Reclaimable),
];

#[derive(Debug, Clone)]
enum Test {
    /// It is said of the thing at all.
    Present,
    Equal(String),
    Unequal(String),
    Matches(Regex),
}

/// Why a text is no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Nothing of that name can be asked for.
    #[error("unknown filter `{0}`")]
    Unknown(String),
    /// The field needs a value.
    #[error("filter `{0}` needs a value")]
    NoValue(String),
    /// Not a regular expression.
    #[error("`{0}` is not a regular expression")]
    Pattern(String),
    /// Neither true nor false.
    #[error("filter `{0}` is true or false")]
    NoTruth(String),
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let end = text.find(['=', '!', '~']).unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        let known = FIELDS.iter().find(|(known, _)| *known == name.trim());
        let field = known.ok_or_else(|| FilterError::Unknown(name.trim().to_owned()))?.1;
        let value = |operator: &str| rest.strip_prefix(operator).map(|v| unquoted(v.trim()));
        let test = if rest.is_empty() {
            Test::Present
        } else if let Some(value) = value("!=") {
            Test::Unequal(value)
        } else if let Some(value) = value("~=") {
            Test::Matches(Regex::new(&value).map_err(|_| FilterError::Pattern(value))?)
        } else if let Some(value) = value("==").or_else(|| value("=")) {
            Test::Equal(value)
        } else {
            return Err(FilterError::Unknown(text.to_owned()));
        };
        if field.is_truth() {
            if let Test::Equal(value) | Test::Unequal(value) = &test
                && truth(value).is_none()
            {
                return Err(FilterError::NoTruth(text.to_owned()));
            }
        } else if matches!(test, Test::Present) && field != Field::Parents {
            return Err(FilterError::NoValue(name.trim().to_owned()));
        }
        Ok(Self { field, test })
    }
}

fn unquoted(value: &str) -> String {
    let inner = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    inner.unwrap_or(value).to_owned()
}

fn truth(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

impl Field {
    fn is_truth(self) -> bool {
        !matches!(self, Self::Id | Self::Parents | Self::Description | Self::Type)
    }
}

impl Filter {
    /// Whether it holds of a thing. `id=` takes any part of an id that is long enough to be typed, as Docker does.
    #[must_use]
    pub fn holds(&self, row: &UsageRow) -> bool {
        let said = match self.field {
            Field::Id => return self.id(&row.id),
            Field::Description => return self.text(&[&row.description]),
            Field::Type => return self.text(&[row.record_type(), row.kind.as_str()]),
            Field::Parents => {
                let parents: Vec<&str> = row.parents.iter().map(String::as_str).collect();
                return self.text(&parents);
            }
            Field::InUse => row.in_use,
            Field::Reclaimable => !row.in_use,
            Field::Mutable => row.mutable(),
            Field::Immutable => !row.mutable(),
            Field::Shared => row.shared,
            Field::Private => !row.shared,
        };
        match &self.test {
            Test::Present => said,
            Test::Equal(value) => truth(value) == Some(said),
            Test::Unequal(value) => truth(value) != Some(said),
            Test::Matches(pattern) => pattern.is_match(if said { "true" } else { "false" }),
        }
    }

    fn id(&self, id: &str) -> bool {
        match &self.test {
            Test::Equal(value) => !value.is_empty() && id.contains(value.as_str()),
            _ => self.text(&[id]),
        }
    }

    /// Whether it holds of one of the texts; "unequal" of all.
    fn text(&self, texts: &[&str]) -> bool {
        match &self.test {
            Test::Present => !texts.is_empty(),
            Test::Equal(value) => texts.contains(&value.as_str()),
            Test::Unequal(value) => !texts.contains(&value.as_str()),
            Test::Matches(pattern) => texts.iter().any(|text| pattern.is_match(text)),
        }
    }
}
