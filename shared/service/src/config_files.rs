//! Configuration in files: one file or a directory of them, read with limits and read again when they change.
//!
//! What the text means is the caller's affair, a function given to [`Watcher::load`]. A set of files that cannot be
//! used never replaces one that could: the last good value stays, and what is wrong is told beside it. Nothing here
//! writes, logs or prints.

use {
    healthscope_shared::document::{DocumentError, MAX_FILE_BYTES, Place, Source},
    std::{
        collections::hash_map::DefaultHasher,
        fmt,
        fs::{self, File, Metadata},
        hash::{Hash, Hasher},
        io::{self, Read},
        os::unix::fs::MetadataExt,
        path::{Path, PathBuf},
        sync::Arc,
        time::{Duration, SystemTime, UNIX_EPOCH},
    },
    tokio::sync::watch,
    tokio_util::sync::CancellationToken,
};

/// How often files are looked at: soon enough for a person who has just saved one, and nothing to a machine.
pub const INTERVAL: Duration = Duration::from_millis(500);

/// Files of a directory that are read: what their names end with. Others, hidden ones and directories are left alone.
pub const EXTENSIONS: [&str; 3] = ["json", "yaml", "yml"];

/// Most files of a directory: one for each of 10,000 components, with room.
const MAX_FILES: usize = 20_000;

/// Most problems written out by [`Problems`]; the others are counted. Nobody reads a hundred.
const MAX_SHOWN: usize = 100;

/// A file touched less than this ago may change again without a new time stamp (kernels stamp by the timer tick, some
/// file systems by the second), so its content is compared too.
const STAMPS_SETTLE: Duration = Duration::from_secs(2);

/// Something wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// At a place in its text: `shop.yaml:12:7: spec.host: ...`.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// With the file or the directory as a whole: `shop.yaml: cannot be read: permission denied`.
    #[error("{path}: {message}")]
    File {
        /// As the user wrote it.
        path: String,
        /// What is wrong, and what to do.
        message: String,
    },
}

/// All that is wrong, never empty; printed one to a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// The problems, in the order of the files.
    #[must_use]
    pub fn list(&self) -> &[Problem] {
        &self.0
    }
}

impl From<Vec<DocumentError>> for Problems {
    fn from(errors: Vec<DocumentError>) -> Self {
        Self(errors.into_iter().map(Problem::Document).collect())
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().take(MAX_SHOWN).enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        match self.0.len().saturating_sub(MAX_SHOWN) {
            0 => Ok(()),
            hidden => write!(f, "\n... and {hidden} more"),
        }
    }
}

impl std::error::Error for Problems {}

/// Reads `path`: a file, or all `*.json`, `*.yaml` and `*.yml` files of a directory in the order of their names, not
/// those of directories in it and not hidden ones.
///
/// A directory counts as one file against [`MAX_FILE_BYTES`].
///
/// # Errors
/// Everything that cannot be read, is not UTF-8 or is too large; a file without a document, or a directory without one,
/// is an error too, since nobody means it.
pub fn read(path: &Path) -> Result<Vec<Source>, Problems> {
    let shown = path.display().to_string();
    let metadata = fs::metadata(path).map_err(|error| Problems(vec![unreadable(&shown, &error)]))?;
    let (paths, place) = if metadata.is_dir() {
        let found = files_of(path).map_err(|problem| Problems(vec![problem]))?;
        (found, "directory")
    } else {
        (vec![path.to_owned()], "file")
    };
    let mut sources = Vec::with_capacity(paths.len());
    let mut problems = Vec::new();
    let mut bytes_left = MAX_FILE_BYTES;
    for path in &paths {
        match read_file(path, bytes_left) {
            Ok(source) => {
                bytes_left -= source.text.len().min(bytes_left);
                sources.push(source);
            }
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() && sources.iter().all(|source| is_blank(&source.text)) {
        problems.push(Problem::File {
            path: shown,
            message: format!("the {place} holds no document; write a HealthScope and its Components into it"),
        });
    }
    if problems.is_empty() {
        Ok(sources)
    } else {
        Err(Problems(problems))
    }
}

/// Makes a source of bytes that came from elsewhere, such as standard input.
///
/// # Errors
/// When they are too many or not UTF-8, with the place.
pub fn source(name: &str, bytes: Vec<u8>) -> Result<Source, Problem> {
    if bytes.len() > MAX_FILE_BYTES {
        return Err(too_large(name));
    }
    let text =
        String::from_utf8(bytes).map_err(|error| not_utf8(name, error.as_bytes(), error.utf8_error()))?;
    // A byte order mark is allowed before YAML and means nothing in UTF-8.
    Ok(Source::new(name, text.strip_prefix('\u{feff}').unwrap_or(&text)))
}

fn read_file(path: &Path, bytes_left: usize) -> Result<Source, Problem> {
    let shown = path.display().to_string();
    let mut bytes = Vec::new();
    let limit = u64::try_from(bytes_left).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(|error| unreadable(&shown, &error))?;
    if bytes.len() > bytes_left {
        return Err(too_large(&shown));
    }
    source(&shown, bytes)
}

fn files_of(directory: &Path) -> Result<Vec<PathBuf>, Problem> {
    let shown = directory.display().to_string();
    let failed = |error: io::Error| unreadable(&shown, &error);
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        // Links are followed: Kubernetes mounts a ConfigMap as links to a directory that it swaps. A link to nothing
        // stays in, to be reported when it is read.
        let is_other = fs::metadata(&path).is_ok_and(|metadata| !metadata.is_file());
        if has_our_name(&path) && !is_other {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        let endings = EXTENSIONS.map(|extension| format!("*.{extension}")).join(", ");
        return Err(Problem::File {
            path: shown,
            message: format!("the directory has no file {endings}"),
        });
    }
    if paths.len() > MAX_FILES {
        let message = format!(
            "the directory has {} files, at most {MAX_FILES} are read",
            paths.len()
        );
        return Err(Problem::File { path: shown, message });
    }
    paths.sort_unstable();
    Ok(paths)
}

fn has_our_name(path: &Path) -> bool {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy())
        .unwrap_or_default();
    let extension = path
        .extension()
        .map(|extension| extension.to_string_lossy())
        .unwrap_or_default();
    !name.starts_with('.') && EXTENSIONS.contains(&&*extension)
}

/// Whether a text holds nothing but comments and markers; a text that needs a parser to tell is not blank.
fn is_blank(text: &str) -> bool {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .all(|line| matches!(line, "" | "---" | "..."))
}

fn unreadable(path: &str, error: &io::Error) -> Problem {
    let cause = match error.kind() {
        io::ErrorKind::NotFound => "there is no such file or directory".to_owned(),
        io::ErrorKind::PermissionDenied => "may not be read: permission denied".to_owned(),
        _ => format!("cannot be read: {error}"),
    };
    Problem::File {
        path: path.into(),
        message: cause,
    }
}

fn too_large(path: &str) -> Problem {
    Problem::File {
        path: path.into(),
        message: format!(
            "larger than the {} MiB that are read in all",
            MAX_FILE_BYTES / (1024 * 1024)
        ),
    }
}

fn not_utf8(name: &str, bytes: &[u8], error: std::str::Utf8Error) -> Problem {
    let offset = error.valid_up_to();
    let before = String::from_utf8_lossy(&bytes[..offset]);
    let line_before = before.rsplit('\n').next().unwrap_or_default();
    let byte = bytes.get(offset).copied().unwrap_or_default();
    Problem::Document(DocumentError {
        place: Place {
            source: name.into(),
            line: before.matches('\n').count() + 1,
            column: line_before.chars().count() + 1,
        },
        message: format!("not UTF-8: byte 0x{byte:02x} at offset {offset}; save the file as UTF-8"),
    })
}

/// The last usable content of the files, and what is wrong with the present one.
#[derive(Debug)]
pub struct Loaded<T> {
    /// What the files meant when they could last be used.
    pub value: Arc<T>,
    /// Counts the values, from 1; 0 before the first.
    pub revision: u64,
    /// Why the present content is not `value`; `None` when it is.
    pub problems: Option<Arc<Problems>>,
}

impl<T> Clone for Loaded<T> {
    fn clone(&self) -> Self {
        Self {
            value: self.value.clone(),
            revision: self.revision,
            problems: self.problems.clone(),
        }
    }
}

/// Nothing was read yet.
impl<T: Default> Default for Loaded<T> {
    fn default() -> Self {
        Self {
            value: Arc::default(),
            revision: 0,
            problems: None,
        }
    }
}

type Parse<T> = dyn Fn(&[Source]) -> Result<T, Vec<DocumentError>> + Send + Sync;

/// Files under watch.
///
/// They are looked at rather than listened to: it works on every file system and through the swapped links of a mounted
/// ConfigMap, and costs a system call twice a second.
pub struct Watcher<T> {
    files: Files<T>,
    interval: Duration,
    sender: watch::Sender<Loaded<T>>,
}

impl<T> fmt::Debug for Watcher<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher")
            .field("path", &self.files.path)
            .finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> Watcher<T> {
    /// Reads `path` for the first time; `parse` says what its text means, now and later.
    ///
    /// # Errors
    /// All that is wrong: a process does not start with files that it cannot use.
    pub fn load<F>(path: &Path, interval: Duration, parse: F) -> Result<Self, Problems>
    where
        F: Fn(&[Source]) -> Result<T, Vec<DocumentError>> + Send + Sync + 'static,
    {
        let mut files = Files {
            path: path.into(),
            parse: Arc::new(parse),
            stamps: Err(io::ErrorKind::NotFound),
            settled: false,
            digest: None,
            waiting: None,
        };
        let value = match files.look() {
            Some(Ok(value)) => value,
            Some(Err(problems)) => return Err(problems),
            None => unreachable!("the first look always reads"),
        };
        let (sender, _) = watch::channel(Loaded {
            value: Arc::new(value),
            revision: 1,
            problems: None,
        });
        Ok(Self {
            files,
            interval,
            sender,
        })
    }

    /// The newest value, now and as it changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Loaded<T>> {
        self.sender.subscribe()
    }

    /// Looks for changes until `stop`, or until nobody listens any more.
    ///
    /// Problems are told once, and again only when they change. They are told at the second look that finds them, so
    /// that a file in the middle of being saved is not called broken.
    pub async fn run(self, stop: CancellationToken) {
        let Self {
            mut files,
            interval,
            sender,
        } = self;
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = sender.closed() => return,
                _ = ticks.tick() => {}
            }
            // One file that is as it was is the usual case, and not worth a thread.
            if files.is_one_unchanged_file() {
                continue;
            }
            // Not joined on `stop`: reading ends by itself.
            let looking = tokio::task::spawn_blocking(move || {
                let found = files.look();
                (files, found)
            });
            let found;
            (files, found) = match looking.await {
                Ok(looked) => looked,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            };
            match found {
                None => {}
                Some(Ok(value)) => sender.send_modify(|loaded| {
                    let revision = loaded.revision + 1;
                    *loaded = Loaded {
                        value: Arc::new(value),
                        revision,
                        problems: None,
                    };
                }),
                Some(Err(problems)) => {
                    sender.send_if_modified(|loaded| {
                        let is_new = loaded.problems.as_deref() != Some(&problems);
                        loaded.problems = Some(Arc::new(problems));
                        is_new
                    });
                }
            }
        }
    }
}

/// The files and what is known of them.
struct Files<T> {
    path: PathBuf,
    parse: Arc<Parse<T>>,
    stamps: Result<Vec<Stamp>, io::ErrorKind>,
    /// Whether equal stamps mean equal content.
    settled: bool,
    /// Of the content read last.
    digest: Option<u64>,
    /// Problems of that content that have not been told.
    waiting: Option<Problems>,
}

impl<T> Files<T> {
    fn is_one_unchanged_file(&self) -> bool {
        self.settled
            && self.waiting.is_none()
            && fs::metadata(&self.path).is_ok_and(|metadata| {
                !metadata.is_dir() && self.stamps == Ok(vec![Stamp::new(&metadata, "")])
            })
    }

    /// Reads the files when they changed; `None` when there is nothing new to tell.
    fn look(&mut self) -> Option<Result<T, Problems>> {
        let stamps = stamps(&self.path);
        if self.settled && self.waiting.is_none() && stamps == self.stamps {
            return None;
        }
        self.settled = stamps
            .as_ref()
            .is_ok_and(|stamps| are_settled(stamps, SystemTime::now()));
        self.stamps = stamps;
        let sources = read(&self.path);
        let is_first = self.digest.is_none();
        let digest = digest(&sources);
        if self.digest.replace(digest) == Some(digest) {
            return self.waiting.take().map(Err);
        }
        self.waiting = None;
        let found = sources.and_then(|sources| (self.parse)(&sources).map_err(Problems::from));
        match found {
            Err(problems) if !is_first => {
                self.waiting = Some(problems);
                None
            }
            found => Some(found),
        }
    }
}

/// What changes whenever a file does.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    name: String,
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds: of the content, and of the file's own record.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn new(metadata: &Metadata, name: &str) -> Self {
        // A pipe has neither size nor lasting times, and gives its content once.
        let is_file = metadata.is_file();
        Self {
            name: name.into(),
            device: metadata.dev(),
            inode: metadata.ino(),
            size: if is_file { metadata.size() } else { 0 },
            modified: if is_file {
                (metadata.mtime(), metadata.mtime_nsec())
            } else {
                (0, 0)
            },
            changed: if is_file {
                (metadata.ctime(), metadata.ctime_nsec())
            } else {
                (0, 0)
            },
        }
    }
}

fn stamps(path: &Path) -> Result<Vec<Stamp>, io::ErrorKind> {
    let metadata = fs::metadata(path).map_err(|error| error.kind())?;
    if !metadata.is_dir() {
        return Ok(vec![Stamp::new(&metadata, "")]);
    }
    let mut stamps = Vec::new();
    for entry in fs::read_dir(path).map_err(|error| error.kind())? {
        let path = entry.map_err(|error| error.kind())?.path();
        if !has_our_name(&path) {
            continue;
        }
        if let Ok(metadata) = fs::metadata(&path) {
            stamps.push(Stamp::new(&metadata, &path.to_string_lossy()));
        }
    }
    stamps.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(stamps)
}

fn are_settled(stamps: &[Stamp], now: SystemTime) -> bool {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let limit = now.saturating_sub(STAMPS_SETTLE);
    let limit = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
    stamps
        .iter()
        .all(|stamp| stamp.modified.0.max(stamp.changed.0) < limit)
}

fn digest(sources: &Result<Vec<Source>, Problems>) -> u64 {
    let mut hasher = DefaultHasher::new();
    match sources {
        Ok(sources) => {
            for Source { name, text } in sources {
                (name, text).hash(&mut hasher);
            }
        }
        Err(problems) => problems.to_string().hash(&mut hasher),
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use {super::*, std::os::unix::fs::symlink};

    fn directory(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(directory.path().join(name), content).unwrap();
        }
        directory
    }

    #[track_caller]
    fn check_read(files: &[(&str, &[u8])], expected: Result<&[&str], &str>) {
        let directory = directory(files);
        let prefix = format!("{}/", directory.path().display());
        let root = directory.path().display().to_string();
        let found = read(directory.path())
            .map(|sources| {
                sources
                    .iter()
                    .map(|source| source.name.replace(&prefix, ""))
                    .collect::<Vec<_>>()
            })
            .map_err(|problems| problems.to_string().replace(&prefix, "").replace(&root, "."));
        let expected = expected
            .map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>())
            .map_err(ToOwned::to_owned);
        assert_eq!(found, expected);
    }

    #[test]
    fn a_directory_gives_its_own_yaml_and_json_files_in_order() {
        check_read(
            &[
                ("b.yaml", b"x"),
                ("a.yml", b"x"),
                ("c.json", b"{}"),
                (".hidden.yaml", b"x"),
                ("notes.txt", b"x"),
                ("d.yaml~", b"x"),
            ],
            Ok(&["a.yml", "b.yaml", "c.json"]),
        );
        let directory = directory(&[("a.yaml", b"x")]);
        fs::create_dir(directory.path().join("sub.yaml")).unwrap();
        assert_eq!(read(directory.path()).unwrap().len(), 1);
    }

    #[test]
    fn nothing_to_read_is_an_error() {
        let nothing = "holds no document; write a HealthScope and its Components into it";
        check_read(&[], Err(".: the directory has no file *.json, *.yaml, *.yml"));
        check_read(
            &[("a.txt", b"x")],
            Err(".: the directory has no file *.json, *.yaml, *.yml"),
        );
        check_read(
            &[("a.yaml", b""), ("b.yaml", b"# later\n--- # x\n...\n")],
            Err(&format!(".: the directory {nothing}")),
        );
        check_read(
            &[("a.yaml", b""), ("b.yaml", b"kind: X")],
            Ok(&["a.yaml", "b.yaml"]),
        );
        let directory = directory(&[("empty.yaml", b"\n")]);
        let path = directory.path().join("empty.yaml");
        assert_eq!(
            read(&path).unwrap_err().to_string(),
            format!("{}: the file {nothing}", path.display())
        );
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_cause() {
        let missing = read(Path::new("/nonexistent/shop.yaml")).unwrap_err().to_string();
        assert_eq!(
            missing,
            "/nonexistent/shop.yaml: there is no such file or directory"
        );
        check_read(
            &[("a.yaml", b"a: b\n  \xc3\xa9: \xff"), ("b.yaml", b"\xfe")],
            Err(
                "a.yaml:2:6: not UTF-8: byte 0xff at offset 11; save the file as UTF-8\n\
                 b.yaml:1:1: not UTF-8: byte 0xfe at offset 0; save the file as UTF-8",
            ),
        );
        let directory = directory(&[("a.yaml", b"x")]);
        symlink("/nonexistent", directory.path().join("b.yaml")).unwrap();
        let problems = read(directory.path()).unwrap_err().to_string();
        assert!(
            problems.ends_with("/b.yaml: there is no such file or directory"),
            "{problems}"
        );
    }

    #[test]
    fn an_endless_file_is_not_read_to_its_end() {
        let problems = read(Path::new("/dev/zero")).unwrap_err().to_string();
        assert_eq!(problems, "/dev/zero: larger than the 32 MiB that are read in all");
    }

    #[test]
    fn a_byte_order_mark_is_dropped() {
        let source = source("f", b"\xef\xbb\xbfkind: X".to_vec()).unwrap();
        assert_eq!(&*source.text, "kind: X");
    }

    #[test]
    fn many_problems_are_counted() {
        let problem = Problem::File {
            path: "f".into(),
            message: "bad".into(),
        };
        let text = Problems(vec![problem; 103]).to_string();
        assert_eq!(text.lines().count(), 101);
        assert!(text.ends_with("\n... and 3 more"), "{text}");
    }

    /// The text of the only document, which is bad when it says so.
    fn parse(sources: &[Source]) -> Result<String, Vec<DocumentError>> {
        let Source { name, text } = &sources[0];
        if text.contains("bad") {
            let place = Place {
                source: name.clone(),
                line: 1,
                column: 1,
            };
            return Err(vec![DocumentError {
                place,
                message: text.trim().to_owned(),
            }]);
        }
        Ok(text.to_string())
    }

    struct Watched {
        files: tempfile::TempDir,
        receiver: watch::Receiver<Loaded<String>>,
        stop: CancellationToken,
    }

    impl Watched {
        fn start(path: impl Fn(&Path) -> PathBuf) -> Self {
            let files = directory(&[("a.yaml", b"one")]);
            let watcher = Watcher::load(&path(files.path()), INTERVAL, parse).unwrap();
            let receiver = watcher.subscribe();
            let stop = CancellationToken::new();
            tokio::spawn(watcher.run(stop.clone()));
            Self {
                files,
                receiver,
                stop,
            }
        }

        fn write(&self, text: &str) {
            fs::write(self.files.path().join("a.yaml"), text).unwrap();
        }

        async fn next(&mut self) -> (String, u64, Option<String>) {
            self.receiver.changed().await.unwrap();
            let loaded = self.receiver.borrow_and_update().clone();
            let problem = loaded.problems.map(|problems| {
                let text = problems.to_string();
                text.rsplit('/').next().unwrap_or_default().to_owned()
            });
            (loaded.value.to_string(), loaded.revision, problem)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_bad_edit_keeps_the_good_value_and_is_told_once() {
        let mut watched = Watched::start(|directory| directory.join("a.yaml"));
        watched.write("two");
        assert_eq!(watched.next().await, ("two".into(), 2, None));
        watched.write("bad");
        assert_eq!(
            watched.next().await,
            ("two".into(), 2, Some("a.yaml:1:1: bad".into()))
        );
        // The same mistake in other words is the same mistake; a new one is told.
        watched.write("bad ");
        tokio::time::sleep(INTERVAL * 5).await;
        assert!(!watched.receiver.has_changed().unwrap());
        watched.write("bad again");
        assert_eq!(
            watched.next().await,
            ("two".into(), 2, Some("a.yaml:1:1: bad again".into()))
        );
        fs::remove_file(watched.files.path().join("a.yaml")).unwrap();
        let gone = "a.yaml: there is no such file or directory";
        assert_eq!(watched.next().await, ("two".into(), 2, Some(gone.into())));
        watched.write("two");
        assert_eq!(watched.next().await, ("two".into(), 3, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_the_same_size_is_seen() {
        let mut watched = Watched::start(|directory| directory.join("a.yaml"));
        for (text, revision) in [("two", 2), ("ten", 3), ("six", 4)] {
            watched.write(text);
            assert_eq!(watched.next().await, (text.into(), revision, None));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn files_that_come_to_a_directory_are_seen() {
        let mut watched = Watched::start(Path::to_owned);
        fs::write(watched.files.path().join("0.yaml"), "zero").unwrap();
        assert_eq!(watched.next().await, ("zero".into(), 2, None));
    }

    #[tokio::test(start_paused = true)]
    async fn swapped_links_of_a_config_map_are_followed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for (version, text) in [("..1", "one"), ("..2", "two")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("a.yaml"), text).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/a.yaml", at("a.yaml")).unwrap();
        let watcher = Watcher::load(directory.path(), INTERVAL, parse).unwrap();
        let mut receiver = watcher.subscribe();
        tokio::spawn(watcher.run(CancellationToken::new()));
        symlink("..2", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        let loaded = receiver.wait_for(|loaded| loaded.revision == 2).await.unwrap();
        assert_eq!(*loaded.value, "two");
    }

    #[tokio::test(start_paused = true)]
    async fn watching_ends_when_told() {
        let mut watched = Watched::start(|directory| directory.join("a.yaml"));
        watched.stop.cancel();
        assert!(watched.receiver.changed().await.is_err());
    }

    #[test]
    fn files_that_cannot_be_used_are_refused_at_the_start() {
        let directory = directory(&[("a.yaml", b"bad")]);
        let problems = Watcher::load(directory.path(), INTERVAL, parse).unwrap_err();
        assert_eq!(problems.list().len(), 1);
    }
}
