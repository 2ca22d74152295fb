//! A Rust toolchain for arm64 where only Debian's packages are at hand: its compiler for this machine, and the standard
//! library built from its source for musl and laid out as rustup does.
//!
//! The system is left as it is: packages are unpacked and not installed, and apt is given lists and architectures of its
//! own, so that of the system's it reads only where the packages come from.

use {
    super::{C_COMPILER, TARGET},
    crate::run,
    anyhow::{Context, bail},
    std::{
        fs, io,
        path::{Path, PathBuf},
        process::Command,
    },
};

/// Names with a version in them go together: when Debian has moved on, `apt-get download` does not find them any more.
const PACKAGES: [&str; 8] = [
    "rustc-web",
    "libstd-rust-web-1.96",
    // For build scripts and macros, which run here.
    "libstd-rust-web-dev",
    "libllvm22",
    "rust-web-src",
    "musl-dev:arm64",
    // What rustup has for musl is LLVM's too.
    "libunwind-22-dev:arm64",
    "qemu-user-static",
];

/// Debian's libunwind is built for glibc with its checked functions, one of which it calls when it logs.
const CHECKED: &str = r"int vfprintf(void *stream, const char *format, __builtin_va_list arguments);

int __fprintf_chk(void *stream, int flag, const char *format, ...) {
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    int written = vfprintf(stream, format, arguments);
    __builtin_va_end(arguments);
    return written;
}
";

/// A folder with the toolchain, complete.
pub(super) struct Toolchain {
    folder: PathBuf,
}

impl Toolchain {
    /// The one in this folder; it is made when it is not there, or was made of other packages.
    pub(super) fn prepare(folder: &Path) -> anyhow::Result<Self> {
        let toolchain = Self {
            folder: folder.to_owned(),
        };
        let stamp = folder.join("packages");
        let packages = PACKAGES.join("\n");
        if fs::read_to_string(&stamp).is_ok_and(|made_of| made_of == packages) {
            println!("    found {}", folder.display());
            return Ok(toolchain);
        }
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
            }
            Ok(()) | Err(_) => {}
        }
        toolchain.unpack()?;
        toolchain.add_c_library()?;
        toolchain.build_standard_library()?;
        // A gigabyte that nothing reads any more.
        for done in ["apt", "std", "root/usr/src"] {
            fs::remove_dir_all(folder.join(done))?;
        }
        fs::write(stamp, packages)?;
        Ok(toolchain)
    }

    /// Cargo with this toolchain's compiler.
    pub(super) fn cargo(&self) -> Command {
        let mut cargo = run::cargo();
        cargo
            .env("RUSTC", self.sysroot().join("bin/rustc"))
            .env("LD_LIBRARY_PATH", self.sysroot().join("lib/x86_64-linux-gnu"));
        cargo
    }

    /// Runs programs of arm64; needs nothing beside it.
    pub(super) fn emulator(&self) -> PathBuf {
        self.sysroot().join("bin/qemu-aarch64-static")
    }

    fn sysroot(&self) -> PathBuf {
        self.folder.join("root/usr")
    }

    /// Where rustc looks for what it links into programs for the target.
    fn libraries(&self) -> PathBuf {
        self.sysroot().join("lib/rustlib").join(TARGET).join("lib")
    }

    fn unpack(&self) -> anyhow::Result<()> {
        let apt = self.folder.join("apt");
        let archives = apt.join("packages");
        for folder in ["lists/partial", "cache/archives/partial", "packages"] {
            fs::create_dir_all(apt.join(folder))?;
        }
        let configuration = apt.join("apt.conf");
        fs::write(apt.join("status"), "")?;
        fs::write(
            &configuration,
            format!(
                "APT::Architectures {{ \"amd64\"; \"arm64\"; }};\n\
                 APT::Sandbox::User \"root\";\n\
                 Acquire::Languages \"none\";\n\
                 Dir::State::status \"{0}/status\";\n\
                 Dir::State::lists \"{0}/lists\";\n\
                 Dir::Cache \"{0}/cache\";\n",
                apt.display()
            ),
        )?;
        let apt_get = || {
            let mut command = run::command("apt-get");
            command
                .arg("--quiet")
                .current_dir(&archives)
                .env("APT_CONFIG", &configuration);
            command
        };
        run::status(apt_get().arg("update"))?;
        run::status(apt_get().arg("download").args(PACKAGES)).context(
            "Debian bookworm with its security updates has these packages; where their versions have moved on, the list in \
             xtask/src/arm64/toolchain.rs has to",
        )?;
        for archive in fs::read_dir(&archives)? {
            let mut command = run::command("dpkg-deb");
            command.arg("--extract").arg(archive?.path());
            run::status(command.arg(self.folder.join("root")))?;
        }
        Ok(())
    }

    /// What rustup's libraries for musl bring along, so that a C compiler for glibc can link them.
    fn add_c_library(&self) -> anyhow::Result<()> {
        let folder = self.libraries().join("self-contained");
        fs::create_dir_all(&folder)?;
        let copy = |from: &Path| -> anyhow::Result<()> {
            let name = from.file_name().context("a file has a name")?;
            fs::copy(from, folder.join(name)).with_context(|| format!("cannot copy {}", from.display()))?;
            Ok(())
        };
        let musl = self.sysroot().join("lib/aarch64-linux-musl");
        for name in ["crt1.o", "Scrt1.o", "rcrt1.o", "crti.o", "crtn.o", "libc.a"] {
            copy(&musl.join(name))?;
        }
        for name in ["crtbegin.o", "crtbeginS.o", "crtend.o", "crtendS.o"] {
            let file = run::output(run::command(C_COMPILER).arg(format!("-print-file-name={name}")))?;
            copy(Path::new(file.trim()))?;
        }
        copy(&self.sysroot().join("lib/aarch64-linux-gnu/libunwind.a"))?;
        let source = self.folder.join("checked.c");
        let object = self.folder.join("checked.o");
        fs::write(&source, CHECKED)?;
        let mut compiling = run::command(C_COMPILER);
        run::status(compiling.args(["-O2", "-c"]).arg(source).arg("-o").arg(&object))?;
        let mut adding = run::command("aarch64-linux-gnu-ar");
        run::status(adding.arg("rs").arg(folder.join("libunwind.a")).arg(object))
    }

    /// As Rust's own build makes what rustup installs: optimised for speed, with what link-time optimisation needs.
    fn build_standard_library(&self) -> anyhow::Result<()> {
        let built = self.folder.join("std");
        let source = self.sysroot().join("lib/rustlib/src/rust/library");
        run::status(
            self.cargo()
                .args(["build", "--locked", "--profile", "dist"])
                .args(["--manifest-path", "sysroot/Cargo.toml", "--target", TARGET])
                .args(["--features", "panic-unwind,backtrace"])
                .current_dir(source)
                .env("CARGO_TARGET_DIR", &built)
                .env("RUSTC_BOOTSTRAP", "1")
                .env("RUSTFLAGS", "-Zforce-unstable-if-unmarked"),
        )?;
        let mut copied = 0;
        for file in fs::read_dir(built.join(TARGET).join("dist/deps"))? {
            let file = file?;
            if file
                .path()
                .extension()
                .is_some_and(|extension| extension == "rlib")
            {
                fs::copy(file.path(), self.libraries().join(file.file_name()))?;
                copied += 1;
            }
        }
        if copied == 0 {
            bail!("the standard library was not built");
        }
        Ok(())
    }
}
