//! Whether a text is JSON at all (RFC 8259). An array of something else than strings is a mistake in
//! an exec form, while what is no JSON is a command for the shell. Without recursion: a hostile
//! text may nest as deep as it is long.

/// Brackets that may be open at once, as in Go's `encoding/json`.
const DEPTH_MAX: usize = 10_000;

/// What has been opened.
#[derive(Clone, Copy)]
enum Open {
    Array,
    Object,
}

/// Whether a text is one JSON value and nothing else.
pub(crate) fn is_valid(text: &str) -> bool {
    let mut reader = Reader { rest: text.as_bytes() };
    reader.document().is_some()
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn document(&mut self) -> Option<()> {
        let mut open: Vec<Open> = Vec::new();
        loop {
            self.skip_blanks();
            if let Some(opened) = self.opening() {
                open.push(opened);
                if open.len() > DEPTH_MAX {
                    return None;
                }
                self.skip_blanks();
                if !self.take(closing(opened)) {
                    self.key(opened)?;
                    continue;
                }
                open.pop();
            } else {
                self.scalar()?;
            }
            // Behind a value: close what ends here, or go on with the next element.
            loop {
                self.skip_blanks();
                let Some(&inner) = open.last() else {
                    return self.rest.is_empty().then_some(());
                };
                if self.take(b',') {
                    self.skip_blanks();
                    self.key(inner)?;
                    break;
                }
                if !self.take(closing(inner)) {
                    return None;
                }
                open.pop();
            }
        }
    }

    fn opening(&mut self) -> Option<Open> {
        let opened = match self.rest.first()? {
            b'[' => Open::Array,
            b'{' => Open::Object,
            _ => return None,
        };
        self.rest = &self.rest[1..];
        Some(opened)
    }

    /// `"key":` in an object; nothing in an array.
    fn key(&mut self, inside: Open) -> Option<()> {
        if matches!(inside, Open::Array) {
            return Some(());
        }
        self.string()?;
        self.skip_blanks();
        self.take(b':').then_some(())
    }

    fn scalar(&mut self) -> Option<()> {
        match self.rest.first()? {
            b'"' => self.string(),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            _ => self.number(),
        }
    }

    fn string(&mut self) -> Option<()> {
        if !self.take(b'"') {
            return None;
        }
        loop {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            match byte {
                b'"' => return Some(()),
                b'\\' => self.escaped()?,
                0..=0x1f => return None,
                _ => {}
            }
        }
    }

    fn escaped(&mut self) -> Option<()> {
        let (&byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        match byte {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(()),
            b'u' => {
                let (digits, rest) = self.rest.split_at_checked(4)?;
                self.rest = rest;
                digits.iter().all(u8::is_ascii_hexdigit).then_some(())
            }
            _ => None,
        }
    }

    fn number(&mut self) -> Option<()> {
        self.take(b'-');
        if !self.take(b'0') {
            self.digits()?;
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            let _sign = self.take(b'+') || self.take(b'-');
            self.digits()?;
        }
        Some(())
    }

    /// One digit or more.
    fn digits(&mut self) -> Option<()> {
        let count = self.rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.rest = &self.rest[count..];
        (count > 0).then_some(())
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        self.rest = self.rest.strip_prefix(word)?;
        Some(())
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.rest.first() == Some(&byte);
        if found {
            self.rest = &self.rest[1..];
        }
        found
    }

    fn skip_blanks(&mut self) {
        let blank = |byte: &&u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        let count = self.rest.iter().take_while(blank).count();
        self.rest = &self.rest[count..];
    }
}

const fn closing(open: Open) -> u8 {
    match open {
        Open::Array => b']',
        Open::Object => b'}',
    }
}

#[cfg(test)]
mod tests {
    use super::is_valid;

    #[test]
    fn json_and_what_looks_like_it() {
        for text in [
            "[]",
            "[ ]",
            "{}",
            "[1, -0, 0.5, 1e9, -1.25E-3]",
            "[true,false,null]",
            "[\"\", \"\\u00e9\\\\\\\"\"]",
            "[[], [[{}]]]",
            "{\"a\": [1, {\"b\": null}], \"c\": \"\"}",
            "\t[\n1\r,2 ] ",
        ] {
            assert!(is_valid(text), "{text}");
        }
        for text in [
            "",
            "[",
            "]",
            "[1",
            "[1,]",
            "[,1]",
            "[1 2]",
            "[1]]",
            "[1] x",
            "[01]",
            "[1.]",
            "[.5]",
            "[+1]",
            "[1e]",
            "[--1]",
            "[tru]",
            "[truex]",
            "[nil]",
            "['a']",
            "[\"a]",
            "[\"\\x\"]",
            "[\"\\u12g4\"]",
            "[\"\\u12\"]",
            "[\"\n\"]",
            "{1: 2}",
            "{\"a\"}",
            "{\"a\": }",
            "{\"a\": 1,}",
            "{\"a\" 1}",
            "[{]}",
        ] {
            assert!(!is_valid(text), "{text}");
        }
    }

    #[test]
    fn depth_takes_no_stack() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(is_valid(&nested(10_000)));
        assert!(!is_valid(&nested(10_001)));
        assert!(!is_valid(&"[".repeat(1_000_000)));
        assert!(!is_valid(&"{\"a\":".repeat(200_000)));
    }
}
