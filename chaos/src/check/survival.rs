//! G13 and G14: nothing crashes a node, and what a crash leaves can be opened again.

use super::facts::seconds;
use super::{Facts, Guarantee, Violation};
use crate::history::IncidentKind;

pub(super) fn check(facts: &Facts<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for incident in &facts.history.incidents {
        let (guarantee, what, said) = match &incident.what {
            IncidentKind::Panicked { message } => (Guarantee::Survival, "panicked", message),
            IncidentKind::Unopenable { error } => {
                (Guarantee::Disk, "cannot open a disk that nobody damaged", error)
            }
            _ => continue,
        };
        let at_us = incident.at_us;
        let mut evidence = facts.incidents(&[incident.node], at_us);
        evidence.push(format!("at {}: {said}", seconds(at_us)));
        let what = format!("node {} {what}", incident.node);
        violations.push(Violation { guarantee, at_us, what, evidence });
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::testing::Builder;
    use super::*;

    #[test]
    fn crashes_are_survived() {
        let mut builder = Builder::new();
        builder.incident(5, 1, IncidentKind::Crashed { power: true });
        builder.incident(6, 1, IncidentKind::Started);
        builder.passes(check);
    }

    #[test]
    fn panics_and_unreadable_disks_are_not() {
        let mut builder = Builder::new();
        builder.incident(5, 1, IncidentKind::Panicked { message: "index".into() });
        builder.fails(check, Guarantee::Survival, "node 1 panicked");
        let mut builder = Builder::new();
        builder.incident(5, 1, IncidentKind::Unopenable { error: "corrupt".into() });
        builder.fails(check, Guarantee::Disk, "node 1 cannot open");
    }
}
