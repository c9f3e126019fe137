//! Compiles `init/init.rs`, the program that is pid 1 of every step: static, without libraries.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=init/init.rs");
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let out = PathBuf::from(variable("OUT_DIR")).join("init");
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["--edition", "2024", "--crate-type", "bin", "--crate-name", "init"]);
    rustc.args(["--target", &variable("TARGET"), "-C", "panic=abort", "-C", "opt-level=s"]);
    rustc.args(["-C", "strip=symbols", "-C", "relocation-model=static"]);
    rustc.args(["-C", "target-feature=+crt-static"]);
    for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"] {
        rustc.arg("-C").arg(format!("link-arg={argument}"));
    }
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg("-C").arg(format!("linker={linker}"));
    }
    let status = rustc.arg("-o").arg(&out).arg("init/init.rs").status();
    assert!(status.is_ok_and(|status| status.success()), "cannot compile init/init.rs");
}
