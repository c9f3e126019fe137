//! The `kiln` command: builds OCI images from Dockerfiles. See ARCHITECTURE.md for the map.

#![forbid(unsafe_code)]
#![allow(
    rustdoc::broken_intra_doc_links,
    rustdoc::invalid_html_tags,
    reason = "the documentation of options is their help text, which has brackets of its own"
)]

mod annotation;
mod build;
mod cache_option;
mod call;
mod command;
mod csv;
mod exit;
mod explain;
mod failure;
mod gc;
mod history;
mod isolation;
mod output;
mod progress;
mod render;
mod settings;
mod signal;
mod snapshotter;
mod wire;

use std::any::Any;
use std::panic;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use exit::Exit;

fn main() -> ExitCode {
    panic::set_hook(Box::new(|cause| {
        if is_of_threads(cause.payload()) {
            THREADS_REFUSED.store(true, Ordering::SeqCst);
        }
    }));
    match panic::catch_unwind(command::run) {
        Ok(Ok(())) => Exit::Success.into(),
        Ok(Err(failure)) => {
            if !failure.is_told() {
                command::print_error(&format!("{failure}\n"));
            }
            failure.exit().into()
        }
        Err(_) if THREADS_REFUSED.load(Ordering::SeqCst) => {
            command::print_error(
                "error: cannot start a thread: resource temporarily unavailable\n  help: raise the caller's limit for processes (`ulimit -u`, or `pids.max` of its control group)\n",
            );
            Exit::Environment.into()
        }
        Err(cause) => {
            let text = cause.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| cause.downcast_ref::<String>().cloned()).unwrap_or_default();
            command::print_error(&format!(
                "error: this is a bug in Kiln: {text}\n  help: please report it with the Dockerfile and the output of `kiln --version`\n"
            ));
            Exit::Internal.into()
        }
    }
}

/// Whether some thread came to an end because the kernel refused another one.
static THREADS_REFUSED: AtomicBool = AtomicBool::new(false);

/// Whether a panic is the standard library's, or rayon's, that no thread can be had: the one thing that both tell by a
/// panic although the machine is at fault.
fn is_of_threads(cause: &(dyn Any + Send)) -> bool {
    let text = cause.downcast_ref::<String>().map_or("", String::as_str);
    text.starts_with("failed to spawn thread") || text.contains("ThreadPoolBuildError")
}
