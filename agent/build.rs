//! Builds the kernel side and leaves the object in `OUT_DIR`, from where the
//! agent embeds it.
//!
//! Either Debian's `rustc-web` with its prebuilt `core` for BPF, or a rustup
//! nightly with `rust-src`, whichever is there; `make setup` installs one.
//! With `SUMUN_BPF_LINES` in its environment the object stays as it was linked: then the verifier's log names source lines.

#[path = "build/strip.rs"]
mod strip;

use std::{
    env,
    error::Error,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const TARGET: &str = "bpfel-unknown-none";
const FLAGS: &str = "-Clinker=bpf-linker -Clink-arg=--btf -Cdebuginfo=2";

fn main() -> Result<(), Box<dyn Error>> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let sources = manifest.join("../agent-ebpf").canonicalize()?;
    for part in ["src", "Cargo.toml", "Cargo.lock", "abi"] {
        // Relative, so that it means this clone's files whoever built here before.
        println!("cargo::rerun-if-changed=../agent-ebpf/{part}");
    }
    println!("cargo::rerun-if-env-changed=SUMUN_BPF_LINKER");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let object = build(&sources, &out)?;
    println!("cargo::rerun-if-env-changed=SUMUN_BPF_LINES");
    let linked = fs::read(&object).map_err(|error| format!("{}: {error}", object.display()))?;
    let embedded = match env::var_os("SUMUN_BPF_LINES") {
        Some(_) => linked,
        None => strip::strip(&linked)
            .ok_or_else(|| format!("{}: not as bpf-linker writes it", object.display()))?,
    };
    fs::write(out.join("sumun-ebpf.o"), embedded)?;
    fs::write(out.join("starter.rs"), starter(&manifest)?)?;
    Ok(())
}

/// The starter policies as an array of (file name, text), for `src/starter.rs`.
fn starter(manifest: &Path) -> Result<String, Box<dyn Error>> {
    const ROOT: &str = "../deploy/policies";
    println!("cargo::rerun-if-changed={ROOT}");
    let mut files = Vec::new();
    for tactic in fs::read_dir(manifest.join(ROOT))? {
        let tactic = tactic?.file_name().into_string();
        let tactic = tactic.map_err(|name| format!("{}: not UTF-8", name.display()))?;
        for file in fs::read_dir(manifest.join(ROOT).join(&tactic))? {
            let file = file?.file_name().into_string();
            let file = file.map_err(|name| format!("{}: not UTF-8", name.display()))?;
            // `.toml.off` stays out.
            if file.ends_with(".toml") {
                files.push((file, tactic.clone()));
            }
        }
    }
    files.sort();
    if let Some(twice) = files.windows(2).find(|two| two[0].0 == two[1].0) {
        return Err(format!("two starter policies are called {}", twice[0].0).into());
    }
    let lines = files.iter().map(|(file, tactic)| {
        // Found by the compiler, so that it means this clone's files whoever built here before.
        let path = format!("/{ROOT}/{tactic}/{file}");
        format!("({file:?}, include_str!(concat!(env!(\"CARGO_MANIFEST_DIR\"), {path:?}))),\n")
    });
    Ok(format!("&[\n{}]\n", lines.collect::<String>()))
}

/// Runs the nested cargo; the path of the object.
fn build(sources: &Path, out: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let linker = find_linker().ok_or(
        "bpf-linker is not in PATH, ~/.cargo/bin or ~/.cache/sumun/tools/bin: run `make setup`",
    )?;
    let target = out.join("ebpf");
    let mut cargo = if Path::new("/usr/bin/rustc").exists() && has_core() {
        let mut cargo = Command::new("/usr/bin/cargo");
        cargo
            .arg("build")
            .env("RUSTC", "/usr/bin/rustc")
            .env("RUSTC_BOOTSTRAP", "1");
        cargo
    } else if rustup_nightly() {
        let mut cargo = Command::new("rustup");
        cargo.args(["run", "nightly", "cargo", "build", "-Zbuild-std=core"]);
        cargo.env_remove("RUSTC").env_remove("RUSTC_BOOTSTRAP");
        cargo
    } else {
        return Err(
            "no compiler for BPF: neither Debian's rustc-web with libstd-rust-web-dev-bpf \
                    nor a rustup nightly with rust-src: run `make setup`"
                .into(),
        );
    };
    let path = prepend_path(&linker)?;
    for (name, _) in env::vars_os() {
        // What cargo set for this build script is not meant for another target.
        let text = name.to_string_lossy();
        if text.starts_with("CARGO") && text != "CARGO_HOME"
            || text.starts_with("RUSTC_W")
            || text == "RUSTUP_TOOLCHAIN"
        {
            cargo.env_remove(&name);
        }
    }
    for name in [
        "RUSTFLAGS",
        "RUSTDOCFLAGS",
        "RUSTDOC",
        "TARGET",
        "HOST",
        "OUT_DIR",
    ] {
        cargo.env_remove(name);
    }
    cargo
        .args(["--release", "--locked", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target)
        .env("RUSTFLAGS", FLAGS)
        .env("PATH", path)
        .current_dir(sources);
    let status = cargo.status().map_err(|error| {
        format!(
            "cannot run {}: {error}",
            cargo.get_program().to_string_lossy()
        )
    })?;
    if !status.success() {
        return Err(
            format!("building the kernel side failed ({status}); its messages are above").into(),
        );
    }
    Ok(target.join(TARGET).join("release").join("sumun-ebpf"))
}

/// Debian's compiler brings `core` for BPF in a package of its own.
fn has_core() -> bool {
    Command::new("/usr/bin/rustc")
        .args(["--print", "target-libdir", "--target", TARGET])
        .env_remove("RUSTUP_TOOLCHAIN")
        .output()
        .is_ok_and(|output| {
            let dir = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            output.status.success()
                && Path::new(&dir).is_dir()
                && Path::new("/usr/bin/cargo").exists()
        })
}

fn rustup_nightly() -> bool {
    Command::new("rustup")
        .args(["run", "nightly", "rustc", "--print", "sysroot"])
        .output()
        .is_ok_and(|output| {
            let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            output.status.success()
                && Path::new(&sysroot)
                    .join("lib/rustlib/src/rust/library")
                    .is_dir()
        })
}

fn find_linker() -> Option<PathBuf> {
    let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let named = env::var_os("SUMUN_BPF_LINKER").map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    named
        .into_iter()
        .chain(env::split_paths(&path).map(|dir| dir.join("bpf-linker")))
        .chain([
            home.join(".cargo/bin/bpf-linker"),
            home.join(".cache/sumun/tools/bin/bpf-linker"),
        ])
        .find(|file| file.is_file())
}

fn prepend_path(linker: &Path) -> Result<OsString, env::JoinPathsError> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dir = linker.parent().map(Path::to_path_buf);
    env::join_paths(dir.into_iter().chain(env::split_paths(&path)))
}
