//! `nightshift completions` and `nightshift man`: what a shell and `man` read of the commands.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Command;
use clap_complete::Shell;

const EXAMPLE: &str = "\
Examples:
  nightshift completions bash \\
    > ~/.local/share/bash-completion/completions/nightshift
  nightshift completions zsh > \"${fpath[1]}/_nightshift\"
  nightshift completions fish > ~/.config/fish/completions/nightshift.fish";

const MAN_EXAMPLE: &str = "\
Examples:
  nightshift man | man -l -
  nightshift man --dir ~/.local/share/man/man1";

/// Print what a shell needs to complete the commands and their flags.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Print the manual page, or write the pages of all commands.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = MAN_EXAMPLE)]
pub(super) struct ManArgs {
    /// Write a page for each command into this directory, instead of the first one to standard
    /// output
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// `command`: the whole command line.
pub(super) fn completions(
    args: &CompletionsArgs,
    mut command: Command,
) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "nightshift", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// `command`: the whole command line.
pub(super) fn man(args: &ManArgs, mut command: Command) -> anyhow::Result<ExitCode> {
    command.build();
    match &args.dir {
        None => std::io::stdout().write_all(&page(&command)?)?,
        Some(directory) => {
            let cannot = || format!("cannot write to {}", directory.display());
            std::fs::create_dir_all(directory).with_context(cannot)?;
            write_pages(&command, directory).with_context(cannot)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the page of a command, and those of its own commands.
fn write_pages(command: &Command, directory: &Path) -> std::io::Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    std::fs::write(directory.join(format!("{name}.1")), page(command)?)?;
    for inner in command
        .get_subcommands()
        .filter(|inner| !inner.is_hide_set())
    {
        if inner.get_name() != "help" {
            write_pages(inner, directory)?;
        }
    }
    Ok(())
}

fn page(command: &Command) -> std::io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    Ok(page)
}
