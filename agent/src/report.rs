//! When a report is written: at once when something changed, then no sooner than 200 ms after the last write, and for
//! mere progress of a pull no sooner than a second. A report equal to the written one is never written.

use std::time::Duration;

use schemas::records::{Next, Phase, Report};

/// Between two writes.
pub const BETWEEN_WRITES: Duration = Duration::from_millis(200);
/// Between two writes that differ in the progress of pulls alone.
pub const BETWEEN_PROGRESS: Duration = Duration::from_secs(1);

/// How long to wait before `new` is written after `written`, which was written `ago`; None when there is nothing to write.
#[must_use]
pub fn due(written: Option<&Report>, new: &Report, ago: Duration) -> Option<Duration> {
    let Some(written) = written else {
        return Some(Duration::ZERO);
    };
    if written == new {
        return None;
    }
    let between = if without_progress(written) == without_progress(new) {
        BETWEEN_PROGRESS
    } else {
        BETWEEN_WRITES
    };
    Some(between.saturating_sub(ago))
}

fn without_progress(report: &Report) -> Report {
    let mut report = report.clone();
    for line in &mut report.instances {
        if let Phase::Pulling { percent } = &mut line.phase {
            *percent = 0;
        }
        if let Some(Next {
            n: _,
            phase: Phase::Pulling { percent },
            image: _,
        }) = &mut line.next
        {
            *percent = 0;
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::records::{ClusterId, NodeCondition, Order, SchemaVersion};

    fn report(conditions: &[&str]) -> Report {
        Report {
            network: Default::default(),
            virtual_ips: Default::default(),
            schema_version: SchemaVersion::default(),
            cluster: ClusterId::from_random([1; 16]),
            node: "n1".parse().unwrap(),
            applied: Order::default(),
            instances: Vec::new(),
            conditions: conditions
                .iter()
                .map(|reason| NodeCondition {
                    reason: (*reason).to_owned(),
                    message: String::new(),
                })
                .collect(),
        }
    }

    #[test]
    fn an_equal_report_is_never_written_and_a_different_one_soon() {
        let (a, b) = (report(&[]), report(&["DiskFull"]));
        assert_eq!(due(Some(&a), &a, Duration::ZERO), None);
        assert_eq!(due(None, &a, Duration::ZERO), Some(Duration::ZERO));
        assert_eq!(due(Some(&a), &b, Duration::ZERO), Some(BETWEEN_WRITES));
        assert_eq!(due(Some(&a), &b, Duration::from_secs(9)), Some(Duration::ZERO));
    }
}
