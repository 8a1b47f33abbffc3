//! The console in a real Chromium, as people use it: with a mouse, with a keyboard, on a narrow screen, and without scripts.

mod accessibility;
mod chromium;
mod live;
mod pages;
mod scale;
mod screenshots;
mod site;
