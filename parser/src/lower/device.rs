//! RUN --device: names of the Container Device Interface become devices of this machine, as far as the
//! caller allows them.

use super::stage::Stage;
use crate::diagnostic::Diagnostic;
use crate::instruction::{Run, Word};
use crate::mount;
use crate::suggest;

/// A device that this machine has (CDI specification, "CDI device name").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceInfo {
    /// `vendor.com/class=name`.
    pub name: String,
    /// Other names under which it can be asked for; several devices may share one.
    pub classes: Vec<String>,
    /// It needs no `--allow`.
    pub auto_allow: bool,
}

/// The devices of a RUN, by their full names.
pub(super) fn lower(stage: &Stage<'_, '_>, run: &Run) -> Result<Vec<String>, Diagnostic> {
    let mut names: Vec<String> = Vec::new();
    for word in &run.devices {
        let (wanted, required) = request(word)?;
        let found = select(&stage.plan.options.devices, wanted);
        if found.is_empty() && required && !stage.plan.options.allow.absent_devices {
            let known = stage.plan.options.devices.iter().map(|device| device.name.as_str());
            let near = suggest::did_you_mean(wanted, known);
            let message = format!("required device {wanted:?} is not registered");
            return Err(Diagnostic::error(word.span, message).help_if(near).help_if(Some(
                "devices are described in /etc/cdi and /var/run/cdi (Container Device Interface)"
                    .to_owned(),
            )));
        }
        for device in found {
            check(stage, device, word)?;
            if !names.contains(&device.name) {
                names.push(device.name.clone());
            }
        }
    }
    names.sort();
    Ok(names)
}

/// `NAME[,required[=BOOL]]`.
fn request(word: &Word) -> Result<(&str, bool), Diagnostic> {
    let mut fields = word.text.split(',');
    let name = fields.next().unwrap_or_default();
    let mut required = false;
    for field in fields {
        let (key, value) = field.split_once('=').unwrap_or((field, "true"));
        required = match (key, mount::boolean(value)) {
            ("required", Some(value)) => value,
            _ => {
                let message = format!("unexpected key '{key}' in '{field}'");
                return Err(Diagnostic::error(word.span, message)
                    .help("write --device=vendor.example/class=name,required=true"));
            }
        };
    }
    if name.is_empty() {
        return Err(Diagnostic::error(word.span, "a device has to have a name")
            .help("write --device=vendor.example/class=name"));
    }
    Ok((name, required))
}

/// `kind=name`, `kind=*`, the first of a `kind`, or all of a class.
fn select<'d>(devices: &'d [DeviceInfo], wanted: &str) -> Vec<&'d DeviceInfo> {
    let of_kind = |kind: &str| {
        let own = move |device: &&DeviceInfo| {
            device.name.strip_prefix(kind).is_some_and(|rest| rest.starts_with('='))
        };
        devices.iter().filter(own).collect::<Vec<_>>()
    };
    match wanted.split_once('=') {
        Some((kind, "*")) => of_kind(kind),
        Some(_) => devices.iter().filter(|device| device.name == wanted).collect(),
        None if wanted.contains('/') => of_kind(wanted).into_iter().take(1).collect(),
        None => {
            let in_class = |device: &&DeviceInfo| device.classes.iter().any(|c| c == wanted);
            devices.iter().filter(in_class).collect()
        }
    }
}

fn check(stage: &Stage<'_, '_>, device: &DeviceInfo, word: &Word) -> Result<(), Diagnostic> {
    let allowed = &stage.plan.options.allow.devices;
    let named = |pattern: &String| {
        pattern.is_empty() || !select(std::slice::from_ref(device), pattern).is_empty()
    };
    if device.auto_allow || allowed.iter().any(named) {
        return Ok(());
    }
    let message = format!("device {:?} is not allowed", device.name);
    Err(Diagnostic::error(word.span, message)
        .help(format!("trust the Dockerfile with it: --allow device={}", device.name)))
}

#[cfg(test)]
mod tests {
    use super::{DeviceInfo, request, select};
    use crate::instruction::Word;

    #[test]
    fn names_and_patterns() {
        let device = |name: &str, class: &str| DeviceInfo {
            name: name.to_owned(),
            classes: vec![class.to_owned()],
            auto_allow: false,
        };
        let all = [device("a.b/gpu=0", "fast"), device("a.b/gpu=1", "fast"), device("c.d/x=0", "")];
        for (wanted, count) in [
            ("a.b/gpu=1", 1),
            ("a.b/gpu=*", 2),
            ("a.b/gpu", 1),
            ("fast", 2),
            ("a.b/g", 0),
            ("e", 0),
        ] {
            assert_eq!(select(&all, wanted).len(), count, "{wanted}");
        }
    }

    #[test]
    fn requests() {
        let read = |text: &str| {
            let word = Word { text: text.to_owned(), ..Word::default() };
            request(&word).map(|(name, required)| (name.to_owned(), required)).ok()
        };
        assert_eq!(read("a/b=c"), Some(("a/b=c".to_owned(), false)));
        assert_eq!(read("a/b=c,required"), Some(("a/b=c".to_owned(), true)));
        assert_eq!(read("a/b=c,required=false"), Some(("a/b=c".to_owned(), false)));
        assert_eq!(read("a/b=c,colour=red"), None);
        assert_eq!(read(",required"), None);
    }
}
