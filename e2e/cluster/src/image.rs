//! Images without a container engine: files, directories and links in one layer, as a docker archive.
//!
//! What is in an image is said in code, so that a test can compare it with a Dockerfile.

use {
    crate::prerequisite::BUSYBOX,
    anyhow::{Context, bail},
    serde_json::{Value, json},
    std::{
        collections::BTreeMap,
        fs,
        io::Write,
        path::{Path, PathBuf},
        process::Command,
    },
};

/// Tar's unit.
const BLOCK: usize = 512;

/// The longest name that the plain header of a tar holds.
const MAX_NAME: usize = 100;

/// Commands of busybox that the target image has by name.
const APPLETS: [&str; 22] = [
    "cat", "chmod", "cp", "echo", "env", "false", "grep", "httpd", "id", "kill", "ls", "mkdir", "nc",
    "nslookup", "ps", "rm", "sh", "sleep", "test", "touch", "true", "wget",
];

/// An image of one layer.
///
/// ```
/// use healthscope_e2e_cluster::Image;
///
/// let image = Image::new("local/hello:1")
///     .content("/etc/greeting", "hello\n", 0o644)
///     .user("1000:1000")
///     .entrypoint(["/bin/sh", "-c", "cat /etc/greeting"]);
/// assert_eq!(image.name(), "local/hello:1");
/// ```
#[derive(Clone, Debug)]
pub struct Image {
    name: String,
    entries: BTreeMap<String, Entry>,
    user: String,
    entrypoint: Vec<String>,
    environment: BTreeMap<String, String>,
}

#[derive(Clone, Debug)]
enum Entry {
    Directory { mode: u32 },
    File { content: Content, mode: u32 },
    Link { target: String },
}

#[derive(Clone, Debug)]
enum Content {
    Of(PathBuf),
    Is(Vec<u8>),
}

impl Image {
    /// An empty image under a name such as `local/target:1`; use it with `imagePullPolicy: Never`.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            entries: BTreeMap::new(),
            user: String::new(),
            entrypoint: Vec::new(),
            environment: BTreeMap::new(),
        }
    }

    /// A target for tests, `local/busybox:1`: a shell, `httpd`, `wget`, `nslookup` and a few more, as user 1000.
    ///
    /// Debian 12's static busybox crashes in `wget -T` (a time limit), whatever the address: leave it out.
    #[must_use]
    pub fn busybox() -> Self {
        let image = Self::new("local/busybox:1")
            .file("/bin/busybox", BUSYBOX, 0o755)
            .directory("/tmp", 0o1777)
            .environment("PATH", "/bin")
            .user("1000:1000")
            .entrypoint(["/bin/sleep", "2147483647"]);
        APPLETS.into_iter().fold(image, |image, applet| {
            image.link(&format!("/bin/{applet}"), "/bin/busybox")
        })
    }

    /// What pods call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds a file of this machine; it is read when the image is written.
    #[must_use]
    pub fn file(self, path: &str, source: impl Into<PathBuf>, mode: u32) -> Self {
        let content = Content::Of(source.into());
        self.with(path, Entry::File { content, mode })
    }

    /// Adds a file with this content.
    #[must_use]
    pub fn content(self, path: &str, content: impl Into<Vec<u8>>, mode: u32) -> Self {
        let content = Content::Is(content.into());
        self.with(path, Entry::File { content, mode })
    }

    /// Adds the libraries that this machine's linker gives a program of its own; a static one has none.
    pub fn libraries_of(self, program: &Path) -> anyhow::Result<Self> {
        let listed = Command::new("ldd")
            .arg(program)
            .output()
            .context("cannot run ldd")?;
        // A static program is no error: it is told apart by having none.
        let listed = String::from_utf8(listed.stdout).context("ldd printed no UTF-8")?;
        let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
        Ok(libraries.fold(self, |image, library| image.file(library, library, 0o755)))
    }

    /// Adds a directory. Those above files are there without it, with mode 0755.
    #[must_use]
    pub fn directory(self, path: &str, mode: u32) -> Self {
        self.with(path, Entry::Directory { mode })
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn link(self, path: &str, target: &str) -> Self {
        let target = target.to_owned();
        self.with(path, Entry::Link { target })
    }

    /// Who it runs as, `uid:gid`; root when never said.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        user.clone_into(&mut self.user);
        self
    }

    /// What it runs.
    #[must_use]
    pub fn entrypoint<'a>(mut self, words: impl IntoIterator<Item = &'a str>) -> Self {
        self.entrypoint = words.into_iter().map(str::to_owned).collect();
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    fn with(mut self, path: &str, entry: Entry) -> Self {
        let path = path.trim_matches('/');
        let above = path.match_indices('/').map(|(end, _)| path[..end].to_owned());
        for directory in above {
            self.entries
                .entry(directory)
                .or_insert(Entry::Directory { mode: 0o755 });
        }
        self.entries.insert(path.to_owned(), entry);
        self
    }

    /// Writes the image as a docker archive, the same bytes each time.
    pub fn write(&self, archive: &Path) -> anyhow::Result<()> {
        let layer = self.layer()?;
        let configuration = self.configuration(&layer).to_string();
        let manifest = json!([{"Config": "config.json", "RepoTags": [self.name], "Layers": ["layer.tar"]}]);
        let mut outer = Vec::new();
        append(
            &mut outer,
            "config.json",
            b'0',
            0o644,
            "",
            configuration.as_bytes(),
        )?;
        append(&mut outer, "layer.tar", b'0', 0o644, "", &layer)?;
        append(
            &mut outer,
            "manifest.json",
            b'0',
            0o644,
            "",
            manifest.to_string().as_bytes(),
        )?;
        finish(&mut outer);
        fs::File::create(archive)
            .and_then(|mut file| file.write_all(&outer))
            .with_context(|| format!("cannot write {}", archive.display()))
    }

    fn layer(&self) -> anyhow::Result<Vec<u8>> {
        let mut layer = Vec::new();
        // By name, so that each directory comes before what is in it.
        for (path, entry) in &self.entries {
            match entry {
                Entry::Directory { mode } => append(&mut layer, &format!("{path}/"), b'5', *mode, "", &[])?,
                Entry::Link { target } => append(&mut layer, path, b'2', 0o777, target, &[])?,
                Entry::File { content, mode } => match content {
                    Content::Is(bytes) => append(&mut layer, path, b'0', *mode, "", bytes)?,
                    Content::Of(source) => {
                        let bytes =
                            fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
                        append(&mut layer, path, b'0', *mode, "", &bytes)?;
                    }
                },
            }
        }
        finish(&mut layer);
        Ok(layer)
    }

    fn configuration(&self, layer: &[u8]) -> Value {
        let digest = ring::digest::digest(&ring::digest::SHA256, layer);
        let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let environment: Vec<String> = self
            .environment
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        json!({
            "architecture": architecture,
            "os": "linux",
            "config": {"User": self.user, "Entrypoint": self.entrypoint, "Env": environment, "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{hex}")]},
        })
    }
}

/// Appends one entry in tar's `ustar` form: owned by root, without times.
fn append(
    tar: &mut Vec<u8>,
    name: &str,
    kind: u8,
    mode: u32,
    link: &str,
    content: &[u8],
) -> anyhow::Result<()> {
    if name.len() > MAX_NAME || link.len() > MAX_NAME {
        bail!("{name} is too long for an image here: {MAX_NAME} bytes");
    }
    let mut header = [0_u8; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, format!("{:011o}", content.len()).as_bytes());
    put(136, b"00000000000");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().copied().map(u32::from).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend_from_slice(&header);
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    Ok(())
}

fn finish(tar: &mut Vec<u8>) {
    tar.resize(tar.len() + 2 * BLOCK, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What GNU tar sees.
    fn listed(tar: &[u8]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.tar");
        fs::write(&file, tar).unwrap();
        let output = Command::new("tar").arg("tvf").arg(&file).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .map(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                format!("{} {} {}", fields[0], fields[2], fields[5..].join(" "))
            })
            .collect()
    }

    #[test]
    fn tar_reads_what_is_written() {
        let image = Image::new("local/x:1")
            .content("/a/b/file", "hello", 0o640)
            .link("/a/link", "/a/b/file")
            .directory("/tmp", 0o1777);
        assert_eq!(
            listed(&image.layer().unwrap()),
            [
                "drwxr-xr-x 0 a/",
                "drwxr-xr-x 0 a/b/",
                "-rw-r----- 5 a/b/file",
                "lrwxrwxrwx 0 a/link -> /a/b/file",
                "drwxrwxrwt 0 tmp/",
            ]
        );
    }

    #[test]
    fn the_archive_is_the_same_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let image = Image::new("local/x:1").content("/file", "hello", 0o644);
        let (first, second) = (folder.path().join("1"), folder.path().join("2"));
        image.write(&first).unwrap();
        image.write(&second).unwrap();
        let bytes = fs::read(first).unwrap();
        assert_eq!(bytes, fs::read(second).unwrap());
        assert_eq!(listed(&bytes).len(), 3);
    }

    #[test]
    fn a_missing_source_and_a_long_name_are_refused() {
        let absent = Image::new("local/x:1").file("/file", "/no/such/file", 0o644);
        assert!(absent.layer().unwrap_err().to_string().contains("/no/such/file"));
        let long = Image::new("local/x:1").content(&"n".repeat(101), "", 0o644);
        assert!(long.layer().is_err());
    }
}
