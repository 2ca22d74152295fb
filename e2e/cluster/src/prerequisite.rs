//! What must come from the system before a cluster can be built and started: Go, and Debian packages.
//!
//! Installs nothing itself: [`missing`] says what to install.

use {
    anyhow::bail,
    std::{env, fs, path::Path},
};

/// A Debian package, and how to see that it, or another system's like, is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name in Debian.
    pub name: &'static str,
    proof: Proof,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// On PATH, or where daemons lie.
    Program(&'static str),
    File(&'static str),
    /// A program that needs no library.
    StaticProgram(&'static str),
}

/// A program in Debian's package of static busybox: the target that tests are run on.
pub(crate) const BUSYBOX: &str = "/bin/busybox";

/// Where Debian has the CNI plugins.
pub(crate) const CNI_PLUGINS: &str = "/usr/lib/cni";

const fn program(program: &'static str, name: &'static str) -> Package {
    Package {
        name,
        proof: Proof::Program(program),
    }
}

const fn file(file: &'static str, name: &'static str) -> Package {
    Package {
        name,
        proof: Proof::File(file),
    }
}

/// For the control plane alone.
pub const CONTROL_PLANE: [Package; 2] = [
    // Makes the RSA key that ServiceAccount tokens are signed with.
    program("openssl", "openssl"),
    // `setpriv` ends the components when their owner is killed.
    program("setpriv", "util-linux"),
];

/// For a whole node, besides those for the control plane.
pub const NODE: [Package; 11] = [
    program("nsenter", "util-linux"),
    program("mount", "mount"),
    program("ip", "iproute2"),
    program("nft", "nftables"),
    program("iptables", "iptables"),
    file("/usr/lib/cni/bridge", "containernetworking-plugins"),
    program("gcc", "gcc"),
    file("/usr/include/stdio.h", "libc6-dev"),
    program("pkg-config", "pkg-config"),
    file("/usr/include/seccomp.h", "libseccomp-dev"),
    Package {
        name: "busybox-static",
        proof: Proof::StaticProgram(BUSYBOX),
    },
];

/// The names of the packages that are not there, each once.
#[must_use]
pub fn missing(packages: &[Package]) -> Vec<&'static str> {
    let mut missing: Vec<&str> = Vec::new();
    for package in packages {
        if !is_there(package.proof) && !missing.contains(&package.name) {
            missing.push(package.name);
        }
    }
    missing
}

/// Says what to type when something is missing.
pub fn check(packages: &[Package]) -> anyhow::Result<()> {
    let missing = missing(packages);
    if !missing.is_empty() {
        let missing = missing.join(" ");
        bail!(
            "missing packages; as root: apt-get update && apt-get install -y --no-install-recommends {missing}"
        );
    }
    Ok(())
}

fn is_there(proof: Proof) -> bool {
    match proof {
        Proof::File(file) => Path::new(file).exists(),
        Proof::Program(program) => {
            let path = env::var_os("PATH").unwrap_or_default();
            let daemons = ["/usr/sbin", "/sbin"].map(Into::into);
            env::split_paths(&path)
                .chain(daemons)
                .any(|folder| folder.join(program).is_file())
        }
        Proof::StaticProgram(program) => fs::read(program).is_ok_and(|content| is_static(&content)),
    }
}

/// Says whether a program asks for no loader of libraries: a 64-bit ELF file without a `PT_INTERP` header.
fn is_static(program: &[u8]) -> bool {
    const PT_INTERP: usize = 3;
    let number = |at: usize, length: usize| {
        let bytes = program.get(at..at.checked_add(length)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0_usize, |sum, byte| (sum << 8) | usize::from(*byte)),
        )
    };
    let headers = || {
        let (offset, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count)
            .map(|index| number(offset.checked_add(index * size)?, 4))
            .collect::<Option<Vec<usize>>>()
    };
    program.starts_with(b"\x7fELF\x02\x01") && headers().is_some_and(|types| !types.contains(&PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_once() {
        let absent = program("no-such-program", "nothing");
        let present = file("/", "base-files");
        assert_eq!(missing(&[absent, present, absent]), ["nothing"]);
        let error = check(&[absent]).unwrap_err().to_string();
        assert!(
            error.ends_with("apt-get install -y --no-install-recommends nothing"),
            "{error}"
        );
    }

    /// An ELF file of one program header.
    fn elf(header_type: u8) -> Vec<u8> {
        let mut file = vec![0; 64 + 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (file[32], file[54], file[56], file[64]) = (64, 56, 1, header_type);
        file
    }

    #[test]
    fn a_program_with_a_loader_is_not_static() {
        assert!(is_static(&elf(1)));
        assert!(!is_static(&elf(3)));
        assert!(!is_static(&elf(1)[..64]), "cut off");
        assert!(!is_static(b"#!/bin/sh"));
        let ours = std::env::current_exe().unwrap();
        assert!(
            !is_static(&fs::read(ours).unwrap()),
            "this test is linked to libc"
        );
    }
}
