//! How fast small records go into a log while another thread syncs it:
//! `cargo run --release -p sumun-segment --example append_rate -- DIR [BYTES [BATCH]]`

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sumun_segment::{Log, Options};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("name a directory that may be filled")?;
    let bytes: usize = args.next().map_or(Ok(150), |arg| arg.parse())?;
    let batch: usize = args.next().map_or(Ok(1), |arg| arg.parse())?;
    let (log, _) = Log::open(dir, Options::default())?;
    let payload = vec![7; bytes];
    let payloads = vec![payload.as_slice(); batch];
    let done = AtomicBool::new(false);
    let syncs = AtomicU64::new(0);
    let started = Instant::now();
    std::thread::scope(|scope| -> Result<(), Box<dyn std::error::Error>> {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if let Err(error) = log.sync() {
                    eprintln!("{error}");
                }
                syncs.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let mut appended = Ok(());
        while appended.is_ok() && started.elapsed() < Duration::from_secs(5) {
            appended = log.append_many(&payloads).and_then(|range| {
                // Keeps the directory small.
                log.remove_through(range.start.saturating_sub(1_000_000))
                    .map(|_| ())
            });
        }
        done.store(true, Ordering::Relaxed);
        Ok(appended?)
    })?;
    let durable = log.sync()?;
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{:.0} records of {bytes} bytes per second, {} syncs",
        durable as f64 / seconds,
        syncs.load(Ordering::Relaxed)
    );
    Ok(())
}
