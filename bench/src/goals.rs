//! Goals of a full run. The figures are printed first; then any missed goal makes the run fail.

use serde::Serialize;

use crate::program::print;
use crate::sites::Failure;

/// The goals that a run missed, and those that could not be measured.
#[derive(Debug, Default)]
pub struct Goals {
    missed: Vec<String>,
    unmeasured: Vec<String>,
}

impl Goals {
    /// Requires a figure of at most its goal.
    pub fn at_most(&mut self, what: impl Into<String>, figure: f64, goal: f64) {
        self.note(figure <= goal, || {
            format!("{} is {figure:.4}, and may be {goal}", what.into())
        });
    }

    /// Requires a figure below its goal.
    pub fn below(&mut self, what: impl Into<String>, figure: f64, goal: f64) {
        self.note(figure < goal, || {
            format!("{} is {figure:.4}, and has to be below {goal}", what.into())
        });
    }

    /// Requires a figure of at least its goal.
    pub fn at_least(&mut self, what: impl Into<String>, figure: f64, goal: f64) {
        self.note(figure >= goal, || {
            format!("{} is {figure:.4}, and has to be {goal}", what.into())
        });
    }

    /// Records a goal that could not be measured, and why. It counts neither as reached nor as
    /// missed.
    pub fn not_measured(&mut self, what: impl Into<String>, why: &str) {
        self.unmeasured.push(format!("{}: {why}", what.into()));
    }

    /// NaN reaches no goal, because every comparison with it is false.
    fn note(&mut self, is_reached: bool, miss: impl FnOnce() -> String) {
        if !is_reached {
            self.missed.push(miss());
        }
    }

    /// Ends a run: prints its report and judges it by the goals. A small run has none.
    ///
    /// # Errors
    ///
    /// If the report cannot be written, or if goals were missed: the error lists each of them.
    pub fn judge(report: &impl Serialize, goals: Option<Self>) -> Result<(), Failure> {
        print(report)?;
        goals.unwrap_or_default().reached()
    }

    /// Prints what was not measured, and fails if a goal was missed.
    ///
    /// # Errors
    ///
    /// If goals were missed: lists each of them.
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
