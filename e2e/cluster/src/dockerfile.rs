//! The last stage of a Dockerfile as an [`Image`]: what it copies, who it runs as and what it runs.
//!
//! Nothing is built here: whoever asks says which file of this machine stands for each file that the stage takes from an
//! earlier one. So an image in a test has the paths, the user and the entrypoint that the real one has, and neither can
//! drift from the other. Knows only the instructions that such a stage needs, and refuses the others.

use {
    crate::image::Image,
    anyhow::{Context, bail},
    std::path::PathBuf,
};

/// How the programs of an image are to be run by everybody, and changed by nobody.
const MODE: u32 = 0o555;

/// The last stage of a Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// What it begins with: `scratch` when there is nothing else in the image.
    pub base: String,
    /// Paths in the earlier stage and in the image.
    pub copies: Vec<(String, String)>,
    /// `uid:gid`.
    pub user: String,
    /// The words of what it runs.
    pub entrypoint: Vec<String>,
}

impl Stage {
    /// Reads the text of a Dockerfile.
    ///
    /// ```
    /// use healthscope_e2e_cluster::Stage;
    ///
    /// let stage = Stage::last_of("FROM scratch\nCOPY --from=build /out/hello /hello\nENTRYPOINT [\"/hello\"]\n")?;
    /// assert_eq!(stage.copies, [("/out/hello".to_owned(), "/hello".to_owned())]);
    /// # anyhow::Ok(())
    /// ```
    pub fn last_of(dockerfile: &str) -> anyhow::Result<Self> {
        let lines: Vec<&str> = dockerfile
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .collect();
        let from = lines.iter().rposition(|line| line.starts_with("FROM "));
        let from = from.context("no FROM")?;
        let mut stage = Self {
            base: lines[from].trim_start_matches("FROM ").to_owned(),
            copies: Vec::new(),
            user: String::new(),
            entrypoint: Vec::new(),
        };
        for line in &lines[from + 1..] {
            stage.follow(line).with_context(|| format!("in {line:?}"))?;
        }
        Ok(stage)
    }

    fn follow(&mut self, line: &str) -> anyhow::Result<()> {
        let (instruction, rest) = line
            .split_once(' ')
            .context("an instruction without a word after it")?;
        match instruction {
            "COPY" => {
                let [from, source, target] = rest.split_whitespace().collect::<Vec<_>>()[..] else {
                    bail!("only COPY --from=STAGE SOURCE TARGET is understood");
                };
                if !from.starts_with("--from=") || !target.starts_with('/') || target.ends_with('/') {
                    bail!("only one file of an earlier stage, to an absolute path, is understood");
                }
                self.copies.push((source.to_owned(), target.to_owned()));
            }
            "USER" => rest.clone_into(&mut self.user),
            "ENTRYPOINT" => {
                self.entrypoint = serde_json::from_str(rest).context("it is no JSON list of words")?;
            }
            other => bail!("{other} is not understood: teach e2e/cluster/src/dockerfile.rs what it means"),
        }
        Ok(())
    }

    /// The image under a name such as `local/agent:1`. `built` says which file of this machine stands for one of an
    /// earlier stage.
    pub fn image(
        &self,
        name: &str,
        built: impl Fn(&str) -> anyhow::Result<PathBuf>,
    ) -> anyhow::Result<Image> {
        if self.base != "scratch" {
            bail!(
                "the image begins with {}, of which nothing is known here",
                self.base
            );
        }
        let empty = Image::new(name)
            .user(&self.user)
            .entrypoint(self.entrypoint.iter().map(String::as_str));
        self.copies.iter().try_fold(empty, |image, (source, target)| {
            Ok(image.file(target, built(source)?, MODE))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLIER: &str = "FROM rust AS build\nRUN make\n\nFROM scratch\n";

    #[test]
    fn the_last_stage_is_read() {
        let text = format!(
            "# what it is\n{EARLIER}COPY --from=build /out/a /a\nUSER 1:2\nENTRYPOINT [\"/a\", \"run\"]\n"
        );
        let expected = Stage {
            base: "scratch".to_owned(),
            copies: vec![("/out/a".to_owned(), "/a".to_owned())],
            user: "1:2".to_owned(),
            entrypoint: vec!["/a".to_owned(), "run".to_owned()],
        };
        assert_eq!(Stage::last_of(&text).unwrap(), expected);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        #[track_caller]
        fn check(line: &str, expected: &str) {
            let error = format!("{:#}", Stage::last_of(&format!("{EARLIER}{line}")).unwrap_err());
            assert!(error.contains(expected) && error.contains(line), "{error}");
        }
        check("VOLUME /data", "VOLUME is not understood");
        check("COPY a /a", "only COPY");
        check("COPY --from=build /out /", "only one file");
        check("ENTRYPOINT /a run", "no JSON list");
        check("USER", "without a word");
        assert!(Stage::last_of("RUN make").is_err());
    }

    #[test]
    fn only_an_image_of_nothing_else_is_made() {
        let stage = Stage::last_of("FROM debian\nUSER 1:1").unwrap();
        let error = stage.image("local/x:1", |_| Ok(PathBuf::new())).unwrap_err();
        assert!(error.to_string().contains("debian"), "{error}");
    }
}
