//! Keeps every answer up to date: plans to timely and differential operators.
