//! Processor time of processes and their descendants.

use std::collections::BTreeMap;
use std::fs;

use crate::sites::Failure;

/// What `/proc` says about a process.
#[derive(Debug, Clone, Copy)]
struct Process {
    parent: u32,
    /// Its own time and that of the children it has waited for.
    ticks: u64,
}

/// Processor seconds, user and system, used by the given processes and all their descendants.
///
/// # Errors
///
/// If one of the given processes no longer exists.
pub fn seconds_of(roots: &[u32]) -> Result<f64, Failure> {
    let all = processes();
    let mut ticks = 0;
    for root in roots {
        let found = all.get(root).ok_or("a process has ended")?;
        ticks += found.ticks;
    }
    let below = |id: u32| {
        let mut at = id;
        // No process tree here has as many generations.
        for _ in 0..16 {
            match all.get(&at) {
                Some(process) if roots.contains(&process.parent) => return true,
                Some(process) => at = process.parent,
                None => return false,
            }
        }
        false
    };
    let started = all
        .iter()
        .filter(|(id, _)| !roots.contains(id) && below(**id));
    ticks += started.map(|(_, process)| process.ticks).sum::<u64>();
    #[allow(clippy::cast_precision_loss, reason = "a few thousand ticks")]
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

fn processes() -> BTreeMap<u32, Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return BTreeMap::new();
    };
    let ids = entries.flatten();
    let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // A process that ends in the meantime is included in its parent's time.
    ids.filter_map(|id: u32| Some((id, look(id)?))).collect()
}

fn look(id: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The second field may contain spaces but ends at the last bracket; the parent is the fourth
    // field, the times are the 14th to the 17th.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let parent = fields.get(1)?.parse().ok()?;
    let times = fields.get(11..15)?.iter();
    let ticks = times.filter_map(|field| field.parse::<u64>().ok()).sum();
    Some(Process { parent, ticks })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn time_of_a_process_counts_with_what_it_started() {
        let own = std::process::id();
        let before = seconds_of(&[own]).unwrap();
        let busy = Command::new("sh")
            .args([
                "-c",
                "sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done'",
            ])
            .status()
            .unwrap();
        assert!(busy.success());
        assert!(seconds_of(&[own]).unwrap() > before);
        assert!(seconds_of(&[u32::MAX]).is_err());
    }
}
