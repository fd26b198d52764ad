//! `docs/events.md` is what the catalogue says.

use std::path::Path;

#[test]
fn the_page_of_events_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/events.md");
    let page = sumun_proto::docs::events_page();
    if std::env::var_os("SUMUN_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).expect("docs/events.md can be written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/events.md is stale: run SUMUN_WRITE_DOCS=1 cargo test -p sumun-proto --test docs"
    );
}

#[test]
fn every_field_is_on_the_page_once() {
    let page = sumun_proto::docs::events_page();
    for field in sumun_proto::FIELDS {
        let row = format!("\n| `{}` | ", field.name);
        assert_eq!(page.matches(&row).count(), 1, "{}", field.name);
    }
}
