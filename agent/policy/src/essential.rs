//! Programs without which a host, or whoever tends it, is lost: a rule that kills says `force = true` if it means them.

use sumun_proto::v1::{Batch, Event, Image, Kind};
use sumun_proto::view::CAPABILITIES;
use sumun_proto::{FieldId, Host, View};

use crate::file::{Exception, Rule};
use crate::ir::{Expr, Predicate};
use crate::matcher::Matcher;
use crate::outcome::{Outcomes, Verdict};

/// What they are, and where the packages of distributions, the kubelet's own and those of container runtimes put them.
const ESSENTIAL: &[(&str, &[&str])] = &[
    (
        "the first process",
        &[
            "/sbin/init",
            "/usr/sbin/init",
            "/usr/lib/systemd/systemd",
            "/lib/systemd/systemd",
        ],
    ),
    ("sshd", &["/usr/sbin/sshd"]),
    ("the agent", &["/usr/bin/sumun-agent"]),
    (
        "the kubelet",
        &[
            "/usr/bin/kubelet",
            "/usr/local/bin/kubelet",
            "/opt/bin/kubelet",
            "/usr/local/bin/k3s",
        ],
    ),
    (
        "a container runtime",
        &[
            "/usr/bin/containerd",
            "/usr/local/bin/containerd",
            "/usr/bin/containerd-shim-runc-v2",
            "/usr/local/bin/containerd-shim-runc-v2",
            "/usr/bin/dockerd",
            "/usr/bin/crio",
            "/usr/local/bin/crio",
            "/usr/bin/conmon",
            "/usr/libexec/crio/conmon",
            "/usr/bin/podman",
            "/usr/bin/runc",
            "/usr/sbin/runc",
            "/usr/local/sbin/runc",
            "/usr/bin/crun",
        ],
    ),
];

/// What is known of each of them: root runs it, with all that root may.
const KNOWN: &[FieldId] = &[
    FieldId::Kind,
    FieldId::ProcExePath,
    FieldId::ProcExeName,
    FieldId::ProcUid,
    FieldId::ProcGid,
    FieldId::ProcEuid,
    FieldId::ProcEgid,
    FieldId::ProcCapEffective,
];

/// What a rule would kill on a kind whatever else is the case, and its file. An exception of it that does not expire saves it. Nothing, if
/// that depends on anything but its program and whose process it is: a rule about a file, an ancestor or a container is one
/// about what happened.
pub(crate) fn killed(rule: &Rule, kind: Kind) -> Option<(&'static str, &'static str)> {
    ESSENTIAL
        .iter()
        .flat_map(|(what, paths)| paths.iter().map(move |path| (*what, *path)))
        .find(|(_, path)| {
            let batch = Batch {
                images: vec![Image {
                    seen: true,
                    exe_path: (*path).to_owned(),
                    // All there are.
                    cap_effective: Some((1 << CAPABILITIES.len()) - 1),
                    ..Image::default()
                }],
                ..Batch::default()
            };
            let event = Event {
                kind: kind.into(),
                image: 1,
                ..Event::default()
            };
            let host = Host::default();
            let view = View {
                host: &host,
                batch: &batch,
                event: &event,
                alert: None,
            };
            let meets =
                |predicate: &Predicate| judge(predicate.expr(), &view).verdict() == Verdict::Match;
            // One that expires saves it until then only.
            let saves = |exception: &Exception| {
                exception.expires_ns.is_none() && meets(&exception.predicate)
            };
            meets(&rule.predicate) && !rule.exceptions.iter().any(saves)
        })
}

/// What an expression is where only [`KNOWN`] is known.
fn judge(expr: &Expr, view: &View<'_>) -> Outcomes {
    match expr {
        Expr::Const(value) => Outcomes::of(*value),
        Expr::Not(inner) => judge(inner, view).not(),
        Expr::And(parts) => parts
            .iter()
            .fold(Outcomes::TRUE, |all, part| all.and(judge(part, view))),
        Expr::Or(parts) => parts
            .iter()
            .fold(Outcomes::FALSE, |any, part| any.or(judge(part, view))),
        atom => {
            let mut known = true;
            atom.visit(&mut |field| known &= KNOWN.contains(&field));
            if known {
                Matcher::compile(&Predicate::new(atom.clone())).outcomes(view)
            } else {
                Outcomes::UNKNOWN
            }
        }
    }
}
