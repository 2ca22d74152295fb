//! Hands the git commit to the crate when it is known; a build without git is fine.
//!
//! Only for optimised builds: in a debug build each commit would rebuild everything above this crate.

use std::{path::Path, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=HEALTHSCOPE_COMMIT");
    let optimised = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let given = std::env::var("HEALTHSCOPE_COMMIT").ok();
    let commit = given.or_else(|| if optimised { commit_of_the_checkout() } else { None });
    if let Some(commit) = commit {
        println!("cargo:rustc-env=HEALTHSCOPE_COMMIT={}", commit.trim());
    }
}

fn commit_of_the_checkout() -> Option<String> {
    // An unpacked archive inside someone else's checkout must not take that one's commit.
    if !Path::new("../../.git").exists() {
        return None;
    }
    // The log of HEAD changes with each commit and each switch of branch.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    if Path::new(log.trim()).exists() {
        println!("cargo:rerun-if-changed={}", log.trim());
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8(output.stdout).ok())
        .flatten()
}
