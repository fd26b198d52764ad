//! Secrets in what a batch says beside arguments: labels and tags, values of settings, sources of mounts, parameters of modules, paths of scripts.
//! Taken out when it is closed: rules have judged what was really said.

use sumun_proto::v1::{Batch, Kind};
use sumun_proto::view::{REDACTED, UNKNOWN_TEXT};

use crate::privacy::Redactor;

/// Puts the redactor's mark in the place of each.
pub(super) fn redact(batch: &mut Batch, redactor: &Redactor) {
    for facts in &mut batch.facts {
        let labels = |labels: &mut [String], flaws: &mut u32| {
            if redactor.redact_labels(labels, *flaws & UNKNOWN_TEXT != 0) {
                *flaws |= REDACTED;
            }
        };
        labels(
            &mut facts.container_labels,
            &mut facts.container_labels_flaws,
        );
        labels(&mut facts.pod_labels, &mut facts.pod_labels_flaws);
        if let Some(cloud) = &mut facts.cloud {
            labels(&mut cloud.tags, &mut cloud.tags_flaws);
        }
    }
    // The arguments of a script say its path once more.
    for image in &mut batch.images {
        if let Some(told) = redactor.redact_text(&image.script, false) {
            image.script = told;
        }
    }
    let alerts = batch.alerts.iter_mut();
    let of_alerts = alerts.filter_map(|alert| alert.event.as_mut());
    for event in batch.events.iter_mut().chain(of_alerts) {
        let kind = event.kind();
        let Some(change) = &mut event.kernel else {
            continue;
        };
        // The name of a setting may say that its value is a secret.
        let name = change.name.clone().filter(|_| kind == Kind::Sysctl);
        let (text, flaws) = match kind {
            Kind::Sysctl => (&mut change.value, &mut change.value_flaws),
            Kind::Mount => (&mut change.source, &mut change.source_flaws),
            Kind::ModuleLoad => (&mut change.parameters, &mut change.parameters_flaws),
            _ => continue,
        };
        let cut = *flaws & UNKNOWN_TEXT != 0;
        let told = text.as_deref().and_then(|text| match &name {
            Some(name) => redactor.redact_value(name, text, cut),
            None => redactor.redact_text(text, cut),
        });
        if told.is_some() {
            *text = told;
            *flaws |= REDACTED;
        }
    }
}

#[cfg(test)]
mod tests {
    use sumun_proto::v1::{Alert, Cloud, Event, Facts, KernelChange};

    use super::*;
    use crate::privacy::Rules;

    const SECRET: &str = "AKIAIOSFODNN7EXAMPLE";

    #[test]
    fn secrets_are_taken_out_of_labels_tags_settings_mounts_and_modules() {
        let texts = |texts: &[&str]| -> Vec<String> {
            texts.iter().map(|text| (*text).to_owned()).collect()
        };
        let labels = || {
            texts(&[
                "app=cart",
                "db-password=hunter2",
                "key=AKIAIOSFODNN7EXAMPLE",
            ])
        };
        let told = texts(&["app=cart", "db-password=[redacted]", "key=[redacted]"]);
        let change = |kind: Kind, text: &str| Event {
            kind: kind.into(),
            kernel: Some(KernelChange {
                name: Some("kernel.x".into()),
                value: Some(text.into()),
                source: Some(text.into()),
                parameters: Some(text.into()),
                ..KernelChange::default()
            }),
            ..Event::default()
        };
        let url = "//name:hunter2@host/share";
        let setting = |name: &str, value: &str| {
            let mut event = change(Kind::Sysctl, value);
            event.kernel.as_mut().expect("a change").name = Some(name.into());
            event
        };
        let mut batch = Batch {
            facts: vec![Facts {
                container_labels: labels(),
                pod_labels: texts(&["app=cart"]),
                cloud: Some(Cloud {
                    tags: labels(),
                    ..Cloud::default()
                }),
                ..Facts::default()
            }],
            events: vec![
                change(Kind::Mount, &format!("https:{url}")),
                change(Kind::ModuleLoad, &format!("a=1 token={SECRET}")),
                setting("kernel.core_pattern", &format!("|/bin/x {SECRET}")),
                setting("net.my_secret", "hunter2"),
                setting("kernel.core_pattern", "|/bin/x %p"),
            ],
            alerts: vec![Alert {
                event: Some(change(Kind::Sysctl, SECRET)),
                ..Alert::default()
            }],
            ..Batch::default()
        };
        let as_it_was = batch.clone();
        redact(&mut batch, &Redactor::default());
        assert_eq!(batch, as_it_was, "it is off");
        let on = Redactor::new(Rules {
            on: true,
            ..Rules::default()
        });
        redact(&mut batch, &on);
        let facts = &batch.facts[0];
        let cloud = facts.cloud.as_ref().expect("an instance");
        assert_eq!((&facts.container_labels, &cloud.tags), (&told, &told));
        let flaws = [
            facts.container_labels_flaws,
            facts.pod_labels_flaws,
            cloud.tags_flaws,
        ];
        assert_eq!(flaws, [REDACTED, 0, REDACTED]);
        let of = |event: &Event| event.kernel.clone().expect("a change");
        let all: Vec<KernelChange> = batch.events.iter().map(of).collect();
        let source = all[0].source.as_deref().unwrap_or_default();
        assert_eq!(source, "https://name:[redacted]@host/share");
        assert_eq!(all[1].parameters.as_deref(), Some("a=1 token=[redacted]"));
        assert_eq!(all[2].value.as_deref(), Some("|/bin/x [redacted]"));
        assert_eq!(all[3].value.as_deref(), Some("[redacted]"));
        assert_eq!(all[4].value.as_deref(), Some("|/bin/x %p"));
        let flaws: Vec<u32> = all.iter().map(|change| change.value_flaws).collect();
        assert_eq!(flaws, [0, 0, REDACTED, REDACTED, 0]);
        let alert = batch.alerts[0].event.as_ref().map(of);
        let value = alert.and_then(|change| change.value);
        assert_eq!(value.as_deref(), Some("[redacted]"));
    }
}
