//! What must be true of image names, whatever the text.

use kiln_image::reference::Reference;

/// The normal form of a reference is read as the same reference.
pub(crate) fn references(text: &str) {
    if let Ok(read) = text.parse::<Reference>() {
        let printed = read.to_string();
        assert_eq!(
            printed.parse::<Reference>().as_ref(),
            Ok(&read),
            "{text:?} prints as {printed:?}"
        );
        let familiar = read.familiar();
        assert_eq!(
            familiar.parse::<Reference>().as_ref(),
            Ok(&read),
            "{text:?} is familiar as {familiar:?}"
        );
    }
}
