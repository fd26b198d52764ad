//! Flags that are followed by a secret without saying so, by program.

/// How a secret stands with its flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `-pSECRET`.
    Attached,
    /// `-p SECRET`.
    Next,
    /// Either.
    Both,
    /// `-u NAME:SECRET` or `-uNAME:SECRET`: what is after this byte.
    After(u8),
}

/// A flag of some programs.
pub(super) struct Flag {
    /// Names of programs; one that ends in `*` stands for all that begin so.
    programs: &'static [&'static str],
    /// A word that has to be among the arguments, else the flag means something else.
    with: Option<&'static str>,
    pub(super) flag: &'static str,
    pub(super) form: Form,
}

const fn flag(programs: &'static [&'static str], flag: &'static str, form: Form) -> Flag {
    Flag {
        programs,
        with: None,
        flag,
        form,
    }
}

const MYSQL: &[&str] = &["mysql*", "mariadb*", "xtrabackup", "innobackupex"];
const LDAP: &[&str] = &["ldap*"];
const SMB: &[&str] = &["smb*", "rpcclient", "net", "nmblookup", "winexe"];
const CONTAINERS: &[&str] = &[
    "docker", "podman", "nerdctl", "buildah", "skopeo", "helm", "oras", "crane",
];
const MONGO: &[&str] = &["mongo*", "bsondump"];

/// All of them.
const FLAGS: &[Flag] = &[
    flag(MYSQL, "-p", Form::Attached),
    flag(MONGO, "-p", Form::Both),
    flag(LDAP, "-w", Form::Both),
    flag(SMB, "-U", Form::After(b'%')),
    flag(&["sshpass"], "-p", Form::Both),
    flag(&["curl", "curl*"], "-u", Form::After(b':')),
    flag(&["curl", "curl*"], "-U", Form::After(b':')),
    flag(&["curl", "curl*"], "--user", Form::After(b':')),
    flag(&["curl", "curl*"], "--proxy-user", Form::After(b':')),
    flag(&["lftp"], "-u", Form::After(b',')),
    flag(&["redis-cli", "valkey-cli"], "-a", Form::Both),
    flag(
        &["zip", "unzip", "mosquitto_*", "sqlcmd", "bcp", "ipmitool"],
        "-P",
        Form::Both,
    ),
    flag(&["7z*", "rar", "unrar"], "-p", Form::Attached),
    flag(
        &[
            "useradd",
            "usermod",
            "groupadd",
            "groupmod",
            "nxc",
            "crackmapexec",
            "netexec",
            "evil-winrm",
        ],
        "-p",
        Form::Both,
    ),
    flag(&["snmp*"], "-A", Form::Both),
    flag(&["snmp*"], "-X", Form::Both),
    flag(&["snmp*"], "-c", Form::Both),
    flag(&["openssl"], "-k", Form::Next),
    flag(&["openssl"], "-K", Form::Next),
    flag(&["xfreerdp*"], "/p:", Form::Attached),
    flag(&["cryptsetup"], "--volume-key", Form::Next),
    Flag {
        programs: CONTAINERS,
        with: Some("login"),
        flag: "-p",
        form: Form::Both,
    },
];

/// Which of [`FLAGS`] belong to a program whose name begins with a byte.
const BY_FIRST: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    assert!(FLAGS.len() <= 32);
    while index < FLAGS.len() {
        let programs = FLAGS[index].programs;
        let mut program = 0;
        while program < programs.len() {
            table[programs[program].as_bytes()[0] as usize] |= 1 << index;
            program += 1;
        }
        index += 1;
    }
    table
};

/// A set of [`FLAGS`], by their place.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    flags: u32,
    /// Those of programs that were named, but without the word that they want.
    refused: u32,
}

impl Known {
    /// Adds the flags of a program; of no program, none.
    pub(super) fn add(&mut self, program: &str, words: &[&str]) {
        let name = program.rsplit('/').next().unwrap_or(program);
        let Some(first) = name.bytes().next() else {
            return;
        };
        let mut left = BY_FIRST[usize::from(first)] & !(self.flags | self.refused);
        while left != 0 {
            let bit = left & left.wrapping_neg();
            let flag = &FLAGS[left.trailing_zeros() as usize];
            left ^= bit;
            let named = flag
                .programs
                .iter()
                .any(|known| match known.strip_suffix('*') {
                    Some(start) => name.starts_with(start),
                    None => name == *known,
                });
            // Asked once for each command.
            match named {
                false => {}
                true if flag.with.is_none_or(|with| words.contains(&with)) => self.flags |= bit,
                true => self.refused |= bit,
            }
        }
    }

    /// The flag that a word is or begins with, and what is left of the word.
    pub(super) fn of(self, word: &str) -> Option<(&'static Flag, &str)> {
        let mut left = self.flags;
        while left != 0 {
            let flag = &FLAGS[left.trailing_zeros() as usize];
            left &= left - 1;
            let Some(rest) = word.strip_prefix(flag.flag) else {
                continue;
            };
            let fits = match flag.form {
                Form::Attached => !rest.is_empty(),
                Form::Next => rest.is_empty(),
                Form::Both => true,
                Form::After(_) => {
                    !flag.flag.starts_with("--") || rest.is_empty() || rest.starts_with('=')
                }
            };
            if fits {
                return Some((flag, rest));
            }
        }
        None
    }
}

/// True if the last of these words is a secret: `htpasswd -b FILE NAME SECRET`.
pub(super) fn last_is_secret(words: &[&str]) -> bool {
    let is = |word: &&str| word.rsplit('/').next() == Some("htpasswd");
    let Some(at) = words.iter().position(is) else {
        return false;
    };
    let given =
        |word: &&str| word.starts_with('-') && !word.starts_with("--") && word.contains('b');
    words.len() > at + 2 && words[at..].iter().any(given)
}
