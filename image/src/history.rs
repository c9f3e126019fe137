//! The history of an image, and how it is made to agree with the layers (behaviour.md 6.2).
//!
//! Readers walk history and layers side by side, so the number of entries that are not empty must be
//! the number of layers. A base image may break that; BuildKit mends it on export and so do we.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The comment on entries that an export had to add.
pub const EXPORTER_COMMENT: &str = "buildkit.exporter.image.v0";

/// One entry of `history`. Fields that we do not know are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HistoryEntry {
    /// When, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The instruction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Who.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// Which frontend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// True where the instruction made no layer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// What is known about a layer when the history is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerOrigin {
    /// When it was made, in seconds since 1970; none for layers of a base image.
    pub created: Option<i64>,
    /// For an entry that has to be added.
    pub description: String,
}

/// Seconds since 1970 as RFC 3339 in UTC, as in `created`.
#[must_use]
pub fn rfc3339(seconds: i64) -> String {
    let time = Timestamp::from_second(seconds);
    time.unwrap_or(if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX }).to_string()
}

/// Makes history and layers agree.
///
/// - More entries than layers: the first surplus ones are marked empty.
/// - More layers than entries: entries with [`EXPORTER_COMMENT`] are added.
/// - Entries without time: a layer's entry takes its layer's; another takes that of the next *new*
///   layer, or of the last new layer before it.
/// - With an `epoch` (seconds since 1970), no time that is filled in here is later than it.
#[must_use]
pub fn normalise(
    mut history: Vec<HistoryEntry>,
    layers: &[LayerOrigin],
    epoch: Option<i64>,
) -> Vec<HistoryEntry> {
    let with_layer = history.iter().filter(|entry| !entry.empty_layer).count();
    let surplus = with_layer.saturating_sub(layers.len());
    for entry in history.iter_mut().filter(|entry| !entry.empty_layer).take(surplus) {
        entry.empty_layer = true;
    }
    for layer in layers.iter().skip(with_layer) {
        history.push(HistoryEntry {
            created_by: Some(layer.description.clone()).filter(|text| !text.is_empty()),
            comment: Some(EXPORTER_COMMENT.to_owned()),
            ..HistoryEntry::default()
        });
    }
    fill_times(&mut history, layers, epoch);
    history
}

fn fill_times(history: &mut [HistoryEntry], layers: &[LayerOrigin], epoch: Option<i64>) {
    let mut origins = layers.iter();
    let times: Vec<Option<i64>> = history
        .iter()
        .map(|entry| if entry.empty_layer { None } else { origins.next().and_then(|l| l.created) })
        .collect();
    let mut following = vec![None; times.len() + 1];
    for i in (0..times.len()).rev() {
        following[i] = times[i].or(following[i + 1]);
    }
    let clamp = |time: i64| rfc3339(epoch.map_or(time, |epoch| time.min(epoch)));
    let mut before = None;
    for (i, entry) in history.iter_mut().enumerate() {
        before = times[i].or(before);
        if entry.created.is_none() {
            entry.created = following[i].or(before).or(epoch).map(clamp);
        }
    }
}

/// The image's own `created`: the time of the last entry that has one (behaviour.md 6.1).
#[must_use]
pub fn created(history: &[HistoryEntry]) -> Option<&str> {
    history.iter().rev().find_map(|entry| entry.created.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str) -> HistoryEntry {
        HistoryEntry {
            created_by: Some(text.trim_start_matches('-').to_owned()),
            empty_layer: text.starts_with('-'),
            ..HistoryEntry::default()
        }
    }

    fn check(history: &[&str], layers: &[Option<i64>], epoch: Option<i64>, expect: &[&str]) {
        let history = history.iter().map(|text| entry(text)).collect();
        let layers: Vec<LayerOrigin> = layers
            .iter()
            .map(|created| LayerOrigin { created: *created, description: "added".into() })
            .collect();
        let got: Vec<String> = normalise(history, &layers, epoch)
            .iter()
            .map(|e| {
                let time = e.created.as_deref().map_or("-", |t| &t[17..19]);
                let mark = if e.empty_layer { "-" } else { "" };
                format!("{mark}{} {time}", e.created_by.as_deref().unwrap_or(""))
            })
            .collect();
        assert_eq!(got, expect);
    }

    #[test]
    fn entries_and_layers_agree() {
        check(&["a", "-b", "c"], &[Some(1), Some(2)], None, &["a 01", "-b 02", "c 02"]);
        check(&["a", "b", "c"], &[Some(1)], None, &["-a 01", "-b 01", "c 01"]);
        check(&["a"], &[Some(1), Some(2)], None, &["a 01", "added 02"]);
        check(&["-a", "b", "-c"], &[Some(5)], None, &["-a 05", "b 05", "-c 05"]);
        check(&["a", "-b"], &[None], None, &["a -", "-b -"]);
        check(&["a", "-b"], &[None], Some(7), &["a 07", "-b 07"]);
        check(&["a", "b"], &[Some(9), Some(3)], Some(5), &["a 05", "b 03"]);
    }

    #[test]
    fn created_is_the_last_time_and_unknown_fields_stay() {
        let text = r#"[{"created":"2020-01-01T00:00:00Z","x":1},{"empty_layer":true}]"#;
        let history: Vec<HistoryEntry> = serde_json::from_str(text).unwrap();
        assert_eq!(created(&history), Some("2020-01-01T00:00:00Z"));
        assert_eq!(serde_json::to_string(&history).unwrap(), text);
        assert_eq!(rfc3339(1_600_000_000), "2020-09-13T12:26:40Z");
        assert!(rfc3339(i64::MAX).starts_with("9999"));
    }
}
