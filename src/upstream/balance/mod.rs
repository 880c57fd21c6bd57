//! Which of several targets takes the next line. A strategy has a file here, and a line in
//! [`Strategy`] and in [`Strategy::choose`].

mod least_busy;
mod load;

pub(super) use load::Load;

/// How the lines of a model are spread over its targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Strategy {
    #[default]
    LeastBusy,
}

/// What strategies remember from one choice to the next.
#[derive(Debug, Default)]
pub(super) struct Choices {
    made: usize,
}

impl Choices {
    /// How many choices were made so far.
    pub(super) fn made(&self) -> usize {
        self.made
    }
}

impl Strategy {
    /// The index of the one of `count` targets that takes the line. Targets without a `load` cannot
    /// take a line now; `None`: no target can.
    pub(super) fn choose(
        self,
        choices: &mut Choices,
        count: usize,
        load: impl Fn(usize) -> Option<Load>,
    ) -> Option<usize> {
        let chosen = match self {
            Strategy::LeastBusy => least_busy::choose(count, choices.made, load),
        }?;
        choices.made = choices.made.wrapping_add(1);
        Some(chosen)
    }
}
