// Package recording writes down what a controller's core was given and what it answered,
// and lets the core do it again.
//
// The core is a pure function, so the state that a reign began with and its inputs are
// all that is needed to have every decision once more: on another machine, in a debugger,
// or with every invariant looked at after each step. A recording is JSON lines:
//
//	{"recording":{...,"state":{...}}}                  a reign begins; a file may have several
//	{"in":"AgentReport","v":{...},"do":[...],"seq":7}  a step: the input, and what came of it
//	{"end":"..."}                                      nothing more was recorded, and why
//
// A Recorder writes it, Replay reads it.
package recording
