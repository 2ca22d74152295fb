//! The store, event by event, in time that only moves when told.
