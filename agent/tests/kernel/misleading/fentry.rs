//! Opens, where their decision point tells. (Their descriptors, and renames and removals, are in `points`.)

use crate::points::points;

#[test]
fn a_rewritten_name_of_an_open_misleads_nobody() {
    let Some(mut bench) = points("misleading-point-open") else {
        return;
    };
    super::rewritten_opens(&mut bench);
}
