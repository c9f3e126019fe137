//! `key=value,key=value`: the form of `--output`, `--secret` and their like. Fields may be quoted as
//! RFC 4180 says (`"a,b"`), because Docker's command line reads them with a CSV reader.

/// One `key[=value]` field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    /// What stands before the first `=`, or the whole field.
    pub(crate) key: String,
    /// What stands behind it; `None` where there is no `=`.
    pub(crate) value: Option<String>,
}

/// Splits one option value into its fields.
///
/// # Errors
/// A quote that is not closed, or text behind a closing one.
pub(crate) fn fields(text: &str) -> Result<Vec<Field>, String> {
    Ok(cells(text)?
        .into_iter()
        .map(|cell| match cell.split_once('=') {
            Some((key, value)) => {
                Field { key: key.trim().to_lowercase(), value: Some(value.to_owned()) }
            }
            None => Field { key: cell, value: None },
        })
        .collect())
}

fn cells(text: &str) -> Result<Vec<String>, String> {
    let mut cells = Vec::new();
    let mut cell = String::new();
    let mut chars = text.chars().peekable();
    loop {
        if cell.is_empty() && chars.peek() == Some(&'"') {
            chars.next();
            read_quoted(&mut chars, &mut cell, text)?;
            match chars.next() {
                None => break,
                Some(',') => {
                    cells.push(std::mem::take(&mut cell));
                    continue;
                }
                Some(_) => return Err(format!("text behind a closing quote in `{text}`")),
            }
        }
        match chars.next() {
            None => break,
            Some(',') => cells.push(std::mem::take(&mut cell)),
            Some(c) => cell.push(c),
        }
    }
    cells.push(cell);
    Ok(cells)
}

fn read_quoted(
    chars: &mut std::iter::Peekable<std::str::Chars<'_>>,
    cell: &mut String,
    text: &str,
) -> Result<(), String> {
    loop {
        match chars.next() {
            None => return Err(format!("a quote is not closed in `{text}`")),
            Some('"') if chars.peek() == Some(&'"') => {
                chars.next();
                cell.push('"');
            }
            Some('"') => return Ok(()),
            Some(c) => cell.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fields;

    fn check(text: &str, expect: &[(&str, Option<&str>)]) {
        let got = fields(text).expect(text);
        let got: Vec<_> = got.iter().map(|f| (f.key.as_str(), f.value.as_deref())).collect();
        assert_eq!(got, expect, "{text}");
    }

    #[test]
    fn splits_fields() {
        check("type=oci,dest=out.tar", &[("type", Some("oci")), ("dest", Some("out.tar"))]);
        check("out", &[("out", None)]);
        check("id=a,src=x=y", &[("id", Some("a")), ("src", Some("x=y"))]);
        check("type=local,\"dest=a,b\"", &[("type", Some("local")), ("dest", Some("a,b"))]);
        check("\"name=a\"\"b\"", &[("name", Some("a\"b"))]);
    }

    #[test]
    fn refuses_broken_quotes() {
        assert!(fields("\"a").is_err());
        assert!(fields("\"a\"b").is_err());
    }
}
