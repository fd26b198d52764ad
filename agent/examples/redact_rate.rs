//! What looking for secrets costs an exec: `cargo run --release --workspace --example redact_rate`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use sumun_agent::privacy::{Redactor, Rules};

fn main() {
    let redactor = Redactor::new(Rules {
        on: true,
        ..Rules::default()
    });
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let script = "set -e; for f in *.c; do gcc -O2 -c \"$f\" -o \"${f%.c}.o\" -DVERSION='\"1.2\"' || exit 1; done";
    let worst = [
        "mysql curl -u docker 'a=b:c' \"x\" ".repeat(500),
        "= ".repeat(8000),
        "password ".repeat(1800),
        "htpasswd ".repeat(1800),
        "docker -p ".repeat(1600),
        "a://b:c".repeat(2300),
        "cookie:".repeat(2300),
        "-----BEGIN PRIVATE KEY-----".repeat(600),
    ];
    let mut cases = vec![
        ("no arguments".to_owned(), words("/usr/bin/true")),
        (
            "an ordinary command".to_owned(),
            words("/usr/bin/find /usr/lib -maxdepth 3 -name *.so -newer /etc/ld.so.cache -print"),
        ),
        (
            "a compiler, 60 words".to_owned(),
            words(&format!(
                "gcc {}",
                "-I/usr/include/x -DNDEBUG=1 ".repeat(30).trim_end()
            )),
        ),
        (
            "a shell's line".to_owned(),
            vec!["sh".into(), "-c".into(), script.into()],
        ),
        (
            "a secret".to_owned(),
            words("mysql -u root -phunter2 -h db.example shop"),
        ),
    ];
    for text in worst {
        let name = format!("16 KiB of {:?}", &text[..8]);
        cases.push((
            name.clone() + ", one argument",
            vec!["sh".into(), "-c".into(), text.clone()],
        ));
        cases.push((name + ", many", words(text.trim_end())));
    }
    for (name, args) in cases {
        let mut best = Duration::MAX;
        // Many short turns: on a busy host some of them are not interrupted.
        for _ in 0..300 {
            let rounds = 2000 / (1 + args.iter().map(String::len).sum::<usize>());
            let begun = Instant::now();
            for _ in 0..=rounds {
                black_box(redactor.redact(black_box(&args), false));
            }
            best = best.min(begun.elapsed() / (u32::try_from(rounds).unwrap_or(u32::MAX) + 1));
        }
        println!("{name:<48} {best:?}");
    }
}
