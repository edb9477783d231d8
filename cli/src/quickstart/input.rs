//! The quickstart's input and script: the built-in ones, or the user's.

use std::path::{Path, PathBuf};

use weir_types::Result;

use crate::args::QuickstartArgs;
use crate::commands::run::read_script;
use crate::commands::stream::open_lines;
use crate::quickstart::builtin;

/// The stream that the script reads.
pub(crate) const INPUT_STREAM: &str = "quickstart/input";

/// What to run on what.
#[derive(Debug)]
pub(crate) struct Input {
    /// The script.
    pub script: String,
    /// JSON lines, in the order in which they are appended.
    pub lines: Vec<String>,
    /// Field that picks the partition.
    pub key: Option<String>,
    /// The user's own: checked for consistency with DataFusion instead of against a program of our own.
    pub own_script: bool,
}

impl Input {
    /// Generates or reads the input.
    ///
    /// # Errors
    /// `NOT_FOUND`, `IO` for files that cannot be read.
    pub(crate) fn open(args: &QuickstartArgs) -> Result<Self> {
        match (&args.input, &args.script) {
            (Some(input), Some(script)) => Self::of_user(input, script, args.key.clone()),
            _ => Ok(Self {
                script: builtin::SCRIPT.to_owned(),
                lines: (0..args.events).map(builtin::line).collect(),
                key: Some(builtin::KEY.to_owned()),
                own_script: false,
            }),
        }
    }

    fn of_user(input: &PathBuf, script: &Path, key: Option<String>) -> Result<Self> {
        let text = read_script(script)?;
        let lines = open_lines(Some(input))?.collect::<Result<Vec<String>>>()?;
        Ok(Self { script: text, lines, key, own_script: true })
    }
}
