//! Which attempt of each job counts: everything of a lower one is refused.

use std::collections::{HashMap, VecDeque};

use weir_types::ids::{Attempt, JobId};
use weir_types::{Error, Result};

/// Jobs remembered; the one seen first is forgotten first. Far more than a TaskManager runs within a restart's time.
const JOBS_MAX: usize = 16_384;

/// The highest attempt seen of each job. It only grows.
#[derive(Debug, Default)]
pub(crate) struct Fences {
    highest: HashMap<JobId, Attempt>,
    order: VecDeque<JobId>,
}

impl Fences {
    /// Refuses what is older than the newest attempt seen.
    pub(crate) fn check(&self, job: &JobId, attempt: Attempt) -> Result<()> {
        match self.highest.get(job) {
            Some(highest) if attempt < *highest => {
                Err(Error::fenced(format!("attempt {attempt} of job {job} is over"))
                    .with_detail(format!("attempt {highest} has been deployed here since")))
            }
            _ => Ok(()),
        }
    }

    /// As [`Fences::raise`], for an attempt that must be higher than any before.
    pub(crate) fn raise_to_new(&mut self, job: &JobId, attempt: Attempt) -> Result<()> {
        match self.highest.get(job) {
            Some(highest) if attempt == *highest => {
                Err(Error::fenced(format!("attempt {attempt} of job {job} is over"))
                    .with_detail("it has run here before"))
            }
            _ => self.raise(job, attempt),
        }
    }

    /// From now on, everything of an attempt lower than this is refused.
    pub(crate) fn raise(&mut self, job: &JobId, attempt: Attempt) -> Result<()> {
        self.check(job, attempt)?;
        if self.highest.insert(job.clone(), attempt).is_none() {
            self.order.push_back(job.clone());
        }
        if self.order.len() > JOBS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.highest.remove(&oldest);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use weir_types::Code;

    use super::*;

    #[test]
    fn attempts_only_grow_and_jobs_do_not_touch_each_other() {
        let (a, b) = (JobId::new("a").unwrap(), JobId::new("b").unwrap());
        let mut fences = Fences::default();
        fences.raise(&a, Attempt(2)).unwrap();
        fences.raise(&a, Attempt(2)).unwrap();
        assert_eq!(fences.raise(&a, Attempt(1)).unwrap_err().code, Code::Fenced);
        assert_eq!(fences.raise_to_new(&a, Attempt(2)).unwrap_err().code, Code::Fenced);
        fences.raise_to_new(&b, Attempt(0)).unwrap();
        assert!(fences.check(&a, Attempt(3)).is_ok() && fences.check(&b, Attempt(0)).is_ok());
    }

    #[test]
    fn the_number_of_jobs_is_bounded() {
        let mut fences = Fences::default();
        for job in 0..=JOBS_MAX {
            fences.raise(&JobId::new(format!("j{job}")).unwrap(), Attempt(2)).unwrap();
        }
        assert_eq!((fences.highest.len(), fences.order.len()), (JOBS_MAX, JOBS_MAX));
        assert!(fences.check(&JobId::new("j0").unwrap(), Attempt(1)).is_ok());
        assert!(fences.check(&JobId::new("j1").unwrap(), Attempt(1)).is_err());
    }
}
