//! `mcp-tasks completions` and `mcp-tasks man`

use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::args::Cli;
use crate::failure::Failure;

pub fn completions(shell: Shell) -> Result<(), Failure> {
    let (mut command, mut script) = (Cli::command(), Vec::new());
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut script);
    Ok(io::stdout().write_all(&script)?)
}

pub fn man(command: Option<&str>) -> Result<(), Failure> {
    let mut program = Cli::command();
    // The pages of the commands then have the global options.
    program.build();
    let command = match command {
        None => program,
        Some(name) => {
            let found = program.find_subcommand(name).cloned();
            let found = found.ok_or_else(|| {
                Failure::usage(format!("there is no command {name}; `mcp-tasks --help` lists the commands"))
            })?;
            found.display_name(format!("mcp-tasks-{name}"))
        }
    };
    let mut page = Vec::new();
    Man::new(command).render(&mut page)?;
    Ok(io::stdout().write_all(&page)?)
}
