//! What people may ask for: typed configuration sections, limits with reasons, validation with a cure.
