//! One language for every standing question.
