//! Man pages and shell completions, made from the definition of a command line, so that they never
//! tell of a flag that is not there. Each program has a hidden command `pages` for it, which
//! the packages are built with.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::Path;

use clap_complete::Shell;

/// Writes `man/*.1` (or `.8` with `section`), `bash/NAME`, `zsh/_NAME` and `fish/NAME.fish` below a folder.
///
/// # Errors
/// A file cannot be written.
pub fn write(command: clap::Command, section: &str, folder: &Path) -> io::Result<()> {
    let name = command.get_name().to_owned();
    for (shell, place) in [
        (Shell::Bash, format!("bash/{name}")),
        (Shell::Zsh, format!("zsh/_{name}")),
        (Shell::Fish, format!("fish/{name}.fish")),
    ] {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command.clone(), &name, &mut text);
        put(&folder.join(place), &text)?;
    }
    // Only this builds the whole tree, with the names that the pages of its commands have.
    let mut command = command.disable_help_subcommand(true);
    command.build();
    page(&command, &name, section, &folder.join("man"))
}

fn page(command: &clap::Command, title: &str, section: &str, folder: &Path) -> io::Result<()> {
    let page = clap_mangen::Man::new(command.clone())
        .title(title.to_uppercase())
        .section(section)
        .manual("Sumun");
    let mut text = Vec::new();
    page.render(&mut text)?;
    put(&folder.join(format!("{title}.{section}")), &text)?;
    for below in command
        .get_subcommands()
        .filter(|below| !below.is_hide_set())
    {
        self::page(
            below,
            &format!("{title}-{}", below.get_name()),
            section,
            folder,
        )?;
    }
    Ok(())
}

fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, bytes)
}
