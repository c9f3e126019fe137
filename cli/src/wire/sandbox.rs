//! What the caller and the configuration say of steps that is not part of them: limits, name servers,
//! whether the network must be their own.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kiln_executor::cancel::Cancel;
use kiln_executor::cgroup;
use kiln_executor::check::shares_proc;
use kiln_executor::net;
use kiln_executor::rootless::Tier;
use kiln_executor::run::{Exit, LogSink, RunError, own_ids_missing, run};
use kiln_executor::spec::{Enclosure, Network, Resources, RunSpec, Snapshotter, SystemCalls};
use kiln_executor::trust::CaCerts;
use kiln_parser::lower::Allowed;
use kiln_parser::platform::Platform;
use kiln_solver::ports::{Kind, Log, StepError, Stream};

use super::{ca_certs, seccomp};
use crate::build::options::{SandboxOptions, UserNamespace};
use crate::build::values;
use crate::failure::Failure;
use crate::isolation;
use crate::settings::Settings;
use crate::snapshotter::Chosen;

/// The smallest limit of memory: less, and not even a shell starts.
const MEMORY_MIN: u64 = 6 << 20;

/// Which networks steps may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Networks {
    /// Their own; this machine's where that cannot be had.
    #[default]
    Any,
    /// Their own alone: `strict-network`.
    Own,
    /// None: `--offline`.
    None,
}

/// For all steps of a build.
#[derive(Debug, Default)]
pub(crate) struct Sandbox {
    pub(crate) resources: Resources,
    pub(crate) dns: Vec<IpAddr>,
    pub(crate) ca_certs: Option<CaCerts>,
    pub(crate) grace: Duration,
    pub(crate) no_new_privileges: bool,
    system_calls: Option<SystemCalls>,
    networks: Networks,
    files: Chosen,
    /// What is around steps.
    pub(crate) enclosure: Enclosure,
    told: AtomicBool,
    host_ids: bool,
    /// Why no step can run here.
    forbidden: Option<String>,
    told_ids: AtomicBool,
    told_proc: AtomicBool,
}

impl Sandbox {
    /// Reads the options.
    ///
    /// # Errors
    /// A value of the wrong form.
    pub(crate) fn parse(
        options: &SandboxOptions,
        allowed: &Allowed,
        settings: &Settings,
    ) -> Result<Self, Failure> {
        let networks = match (settings.offline, settings.config.strict_network) {
            (true, _) => Networks::None,
            (false, true) => Networks::Own,
            (false, false) => Networks::Any,
        };
        let memory = options.memory.as_ref().map(|text| memory(text)).transpose()?;
        let milli_cpus = options.cpus.as_ref().map(|text| milli_cpus(text)).transpose()?;
        let resources = Resources { memory, milli_cpus, pids: options.pids_limit };
        let dns = options.dns.iter().map(|text| {
            text.parse().map_err(|_| {
                Failure::usage(format_args!("invalid --dns `{text}`: not an address"))
                    .hint("for example --dns 10.0.0.53")
            })
        });
        let dns = dns.collect::<Result<Vec<_>, _>>()?;
        let grace = Duration::from_secs(options.stop_timeout);
        let mut sandbox = Self { resources, dns, grace, networks, ..Self::default() };
        let configured = settings.config.ca_certs.as_deref();
        sandbox.ca_certs = ca_certs::read(options.ca_certs.as_deref(), configured)?;
        let tier = settings.isolation.as_ref().map(|entered| entered.tier);
        if tier == Some(Tier::Chroot) {
            sandbox.enclosure = Enclosure::Chroot;
        }
        sandbox.files = Chosen::new(settings.snapshotter, sandbox.in_chroot());
        sandbox.host_ids = options.userns == UserNamespace::Host;
        sandbox.forbidden = settings.isolation.as_ref().and_then(isolation::forbidden);
        if !resources.is_unbounded() {
            cgroup::settle();
        }
        for option in &options.security_opt {
            sandbox.secure(option, allowed)?;
        }
        Ok(sandbox)
    }

    /// Whether steps have neither namespaces nor mounts.
    pub(crate) fn in_chroot(&self) -> bool {
        self.enclosure == Enclosure::Chroot
    }

    /// `--security-opt`.
    fn secure(&mut self, option: &str, allowed: &Allowed) -> Result<(), Failure> {
        let (name, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
        match (name, value) {
            ("no-new-privileges", "" | "true") => self.no_new_privileges = true,
            ("no-new-privileges", "false") => self.no_new_privileges = false,
            ("seccomp", "unconfined") if allowed.insecure => {
                self.system_calls = Some(SystemCalls::Unfiltered);
            }
            ("seccomp", "unconfined") => {
                return Err(Failure::usage("--security-opt seccomp=unconfined is not allowed")
                    .hint("trust the Dockerfile with it: --allow security.insecure"));
            }
            ("seccomp", file) if !file.is_empty() => {
                let filter = seccomp::read(Path::new(file))?;
                self.system_calls = Some(SystemCalls::Filtered(Arc::new(filter)));
            }
            _ => {
                return Err(Failure::usage(format_args!("invalid --security-opt `{option}`"))
                    .hint("there are seccomp=FILE, seccomp=unconfined and no-new-privileges"));
            }
        }
        Ok(())
    }

    /// The filter of a step for a platform.
    pub(crate) fn system_calls(&self, platform: Option<&Platform>) -> SystemCalls {
        self.system_calls.clone().unwrap_or_else(|| SystemCalls::Standard {
            multiplexed_sockets: platform.is_some_and(|platform| platform.architecture == "386"),
        })
    }

    /// Whether steps can run at all.
    ///
    /// # Errors
    /// No namespace can be made here.
    pub(crate) fn check(&self, log: &dyn Log) -> Result<(), StepError> {
        let Some(why) = &self.forbidden else {
            self.remark_on_proc(log);
            return Ok(());
        };
        Err(StepError {
            kind: Kind::Environment,
            message: "RUN needs a user namespace, which cannot be made here".to_owned(),
            help: Some(why.clone()),
        })
    }

    /// Says once that steps see the processes of the container that the builder is in.
    fn remark_on_proc(&self, log: &dyn Log) {
        if !self.told_proc.swap(true, Ordering::Relaxed) && !self.in_chroot() && shares_proc() {
            log.write(Stream::Err, b"note: steps see this container's /proc (kiln doctor)\n");
        }
    }

    /// Whether a step gets ids of its own. Where the kernel forbids that, root's steps have root's ids,
    /// and that is said once; others do not get here (`--isolation`).
    pub(crate) fn own_ids(&self, store: &Path, log: &dyn Log) -> bool {
        if self.host_ids || self.in_chroot() {
            return false;
        }
        let Some(why) = own_ids_missing(store) else { return true };
        if !self.told_ids.swap(true, Ordering::Relaxed) {
            let line = format!("note: root in a step is this machine's root ({why})\n");
            log.write(Stream::Err, line.as_bytes());
        }
        false
    }

    /// How the files of the next step are put together; said once where that is not by overlay.
    ///
    /// # Errors
    /// One was asked for by name and is not possible.
    pub(crate) fn snapshotter(
        &self,
        store: &Path,
        log: &dyn Log,
    ) -> Result<Snapshotter, StepError> {
        let (snapshotter, line) = self.files.next(store).map_err(|(name, why)| StepError {
            kind: Kind::Environment,
            message: format!("--snapshotter={name} is not possible here"),
            help: Some(why),
        })?;
        if let Some(line) = line {
            log.write(Stream::Err, line.as_bytes());
        }
        Ok(snapshotter)
    }

    /// Runs a step, with another snapshotter where one is refused that may be replaced.
    ///
    /// # Errors
    /// No snapshotter is left; how the step ended is inside.
    pub(crate) fn carry_out(
        &self,
        spec: &mut RunSpec,
        store: &Path,
        log: &dyn Log,
        sink: &dyn LogSink,
        cancel: &Cancel,
    ) -> Result<Result<Exit, RunError>, StepError> {
        loop {
            match run(spec, sink, cancel) {
                Err(RunError::NoOverlay(why)) if self.files.refused(spec.snapshotter, &why) => {
                    spec.snapshotter = self.snapshotter(store, log)?;
                }
                exit => return Ok(exit),
            }
        }
    }

    /// Whether steps have no network, whatever they ask for.
    pub(crate) fn is_offline(&self) -> bool {
        self.networks == Networks::None
    }

    /// Says once that a step has the machine's network because it can have none of its own.
    ///
    /// # Errors
    /// The configuration forbids that.
    pub(crate) fn check_network(&self, network: Network, log: &dyn Log) -> Result<(), StepError> {
        if network != Network::Default || self.told.load(Ordering::Relaxed) {
            return Ok(());
        }
        let missing = if self.in_chroot() { Some("steps are in a chroot") } else { net::missing() };
        let Some(why) = missing else { return Ok(()) };
        if self.networks == Networks::Own {
            return Err(StepError {
                kind: Kind::Environment,
                message: "steps need a network of their own (`strict-network = true`), which cannot be had".to_owned(),
                help: Some(why.to_owned()),
            });
        }
        // Of a chroot the build has said so.
        if !self.in_chroot() && !self.told.swap(true, Ordering::Relaxed) {
            let line = format!("note: steps share this machine's network ({why})\n");
            log.write(Stream::Err, line.as_bytes());
        }
        Ok(())
    }
}

fn memory(text: &str) -> Result<u64, Failure> {
    let bytes = values::bytes("memory", text)?;
    if bytes >= MEMORY_MIN {
        return Ok(bytes);
    }
    Err(Failure::usage(format_args!("invalid --memory `{text}`: less than 6m")))
}

fn milli_cpus(text: &str) -> Result<u64, Failure> {
    let bad = || {
        Failure::usage(format_args!("invalid --cpus `{text}`: not a number of processors"))
            .hint("for example --cpus 1.5")
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = format!("{fraction:0<3}");
    let whole: u64 = whole.parse().map_err(|_| bad())?;
    let milli: u64 = digits.get(..3).and_then(|digits| digits.parse().ok()).ok_or_else(bad)?;
    let sum = whole.checked_mul(1000).and_then(|whole| whole.checked_add(milli));
    sum.filter(|sum| *sum > 0).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::{memory, milli_cpus};

    #[test]
    fn limits_are_read() {
        let cpus = |text| milli_cpus(text).ok();
        assert_eq!([cpus("2"), cpus("0.5"), cpus("1.25")], [Some(2000), Some(500), Some(1250)]);
        assert_eq!([cpus("0"), cpus("-1"), cpus("x"), cpus("1.x")], [None; 4]);
        assert_eq!(memory("256m").ok(), Some(256 << 20));
        assert!(memory("1k").is_err());
    }
}
