//! Names of program images.

/// The id of a program image: `proc.exec_id`.
///
/// The kernel names an image by (pid, start of the process, `self_exec_id`). The
/// id is made from these alone, so the agent gives the same image the same
/// id after a restart, from an exec record, a file record or the task iterator. The
/// upper 41 bits are the start time in units of 16.384 µs, so ids of a host grow with
/// time and delta-encode; the lower 20 bits separate processes that started in the
/// same unit and count the images of one process. Together with boot and pid an id is unique (until
/// one process has executed 2^20 times).
#[must_use]
pub fn exec_id(pid: u32, start_ns: u64, image: u64) -> u64 {
    let low = spread(pid, start_ns).wrapping_add(image) & LOW;
    ((start_ns >> 14) << 20 & (i64::MAX as u64)) | low
}

/// The kernel's image count behind an id, modulo 2^20: what [`exec_id`] was given.
#[must_use]
pub fn image(pid: u32, start_ns: u64, exec_id: u64) -> u64 {
    exec_id.wrapping_sub(spread(pid, start_ns)) & LOW
}

const LOW: u64 = (1 << 20) - 1;

/// Fibonacci hashing: one multiplication spreads neighbouring pids and times.
fn spread(pid: u32, start_ns: u64) -> u64 {
    (start_ns ^ (u64::from(pid) << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 44
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_a_process_differ_and_fit_a_signed_integer() {
        let start = 55 * 86_400 * 1_000_000_000;
        let ids: Vec<_> = (0..1000).map(|image| exec_id(77, start, image)).collect();
        let mut unique = ids.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), ids.len());
        assert!(ids.iter().all(|id| i64::try_from(*id).is_ok()));
    }

    #[test]
    fn the_image_count_comes_back() {
        for (pid, start, count) in [
            (1, 0, 0),
            (4_194_303, u64::MAX >> 9, 77),
            (5, 123_456_789, LOW),
        ] {
            assert_eq!(image(pid, start, exec_id(pid, start, count)), count);
        }
    }

    #[test]
    fn ids_grow_with_start_time() {
        assert!(exec_id(1, 1 << 30, 9) < exec_id(1, (1 << 30) + (1 << 15), 1));
    }
}
