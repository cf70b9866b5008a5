//! Goals of a full run: its figures are printed first, then what they miss ends it as a failure.

use serde::Serialize;

use crate::program::print;
use crate::sites::Failure;

/// What a run's figures miss, and what has no figure.
#[derive(Debug, Default)]
pub struct Goals {
    missed: Vec<String>,
    unmeasured: Vec<String>,
}

impl Goals {
    /// A figure that may be as large as its goal.
    pub fn at_most(&mut self, what: impl Into<String>, figure: f64, goal: f64) {
        self.note(figure <= goal, || {
            format!("{} is {figure:.4}, and may be {goal}", what.into())
        });
    }

    /// A figure that has to be smaller than its goal.
    pub fn below(&mut self, what: impl Into<String>, figure: f64, goal: f64) {
        self.note(figure < goal, || {
            format!("{} is {figure:.4}, and has to be below {goal}", what.into())
        });
    }

    /// A figure that has to be as large as its goal.
    pub fn at_least(&mut self, what: impl Into<String>, figure: f64, goal: f64) {
        self.note(figure >= goal, || {
            format!("{} is {figure:.4}, and has to be {goal}", what.into())
        });
    }

    /// A goal that nothing was measured for, and why not: it is neither reached nor missed, and that is said.
    pub fn not_measured(&mut self, what: impl Into<String>, why: &str) {
        self.unmeasured.push(format!("{}: {why}", what.into()));
    }

    /// What is no number reaches no goal: no comparison holds for it.
    fn note(&mut self, is_reached: bool, miss: impl FnOnce() -> String) {
        if !is_reached {
            self.missed.push(miss());
        }
    }

    /// The end of a run: prints its report, and judges it by the goals, which a small run has none of.
    ///
    /// # Errors
    ///
    /// If nobody reads it, or a goal was missed: each of them.
    pub fn judge(report: &impl Serialize, goals: Option<Self>) -> Result<(), Failure> {
        print(report)?;
        goals.unwrap_or_default().reached()
    }

    /// Says what was not measured, and fails with what was missed.
    ///
    /// # Errors
    ///
    /// If a goal was missed: each of them.
    pub fn reached(self) -> Result<(), Failure> {
        for what in &self.unmeasured {
            eprintln!("not measured: {what}");
        }
        match self.missed.as_slice() {
            [] => Ok(()),
            missed => Err(format!("goals missed: {}", missed.join("; ")).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_goal_that_is_missed_is_said() {
        let mut goals = Goals::default();
        goals.at_most("a wait", 2.0, 2.0);
        goals.at_least("a share", 0.5, 0.5);
        goals.below("a ratio", 0.9, 1.0);
        goals.not_measured("a rival", "it is not here");
        assert!(goals.reached().is_ok());
        let mut goals = Goals::default();
        goals.at_most("a wait", 2.1, 2.0);
        goals.at_least("a share", f64::NAN, 0.5);
        goals.below("a ratio", 1.0, 1.0);
        goals.at_least("a rate", 1.0, 0.5);
        goals.not_measured("a rival", "it is not here");
        let said = goals.reached().unwrap_err().to_string();
        for missed in ["a wait", "a share", "a ratio"] {
            assert!(said.contains(missed), "{said}");
        }
        assert!(
            !said.contains("a rate") && !said.contains("a rival"),
            "{said}"
        );
    }
}
