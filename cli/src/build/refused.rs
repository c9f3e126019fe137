//! Options of `docker buildx build` that Kiln knows but does not do: each is refused with a clear
//! sentence. An option that is accepted and does nothing would be a lie.

use clap::Args;

use crate::failure::Failure;

/// The hidden options; every one is a reason to stop, but for values that ask for nothing.
#[derive(Args, Debug)]
pub(crate) struct RefusedOptions {
    #[arg(long, hide = true)]
    attest: Vec<String>,
    #[arg(long, hide = true)]
    builder: Option<String>,
    #[arg(long, hide = true)]
    load: bool,
    #[arg(long, hide = true)]
    policy: Vec<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    provenance: Option<String>,
    #[arg(long, hide = true)]
    resource: Vec<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    sbom: Option<String>,
    #[arg(long, hide = true)]
    squash: bool,
}

impl RefusedOptions {
    /// Refuses the first option that asks for something Kiln does not do.
    ///
    /// # Errors
    /// One sentence that names the option, and a hint where there is another way.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        for (given, option, instead) in self.table() {
            if given {
                let failure = Failure::usage(format_args!(
                    "option `--{option}` is not supported by this version of Kiln"
                ));
                return Err(if instead.is_empty() { failure } else { failure.hint(instead) });
            }
        }
        Ok(())
    }

    /// Whether it was given, its name, what to do instead.
    fn table(&self) -> [(bool, &'static str, &'static str); 8] {
        [
            (asks(&self.attest), "attest", "images are made without attestations"),
            (
                self.builder.is_some(),
                "builder",
                "Kiln has no builder instances; leave the option out",
            ),
            (
                self.load,
                "load",
                "Kiln has no daemon to load into: `-o type=docker,dest=- | docker load`, or `-t NAME` for Kiln's own store",
            ),
            (!self.policy.is_empty(), "policy", ""),
            (asks(self.provenance.as_slice()), "provenance", "--provenance=false is accepted"),
            (!self.resource.is_empty(), "resource", ""),
            (asks(self.sbom.as_slice()), "sbom", "--sbom=false is accepted"),
            (self.squash, "squash", "-o type=tar gives the flattened root file system"),
        ]
    }
}

/// Whether one of the values asks for something: `--provenance=false` does not.
fn asks<S: AsRef<str>>(values: impl IntoIterator<Item = S>) -> bool {
    values.into_iter().any(|value| {
        let value = value.as_ref();
        !(matches!(value, "false" | "0") || value.contains("disabled=true"))
    })
}
