package core

// Outcome is what an input brings about.
type Outcome struct {
	Decisions []Decision // changes of nodes' duties, in order
	Events    []Event
	Orders    []OrderNode
	Reply     Reply // to a command
}

// Take adds the decisions, events and orders among effects.
func (o *Outcome) Take(effects []Effect) {
	for _, e := range effects {
		switch e := e.(type) {
		case Decision:
			o.Decisions = append(o.Decisions, e)
		case Event:
			o.Events = append(o.Events, e)
		case OrderNode:
			o.Orders = append(o.Orders, e)
		}
	}
}

// tryID is the ID of a command that Try takes: none of the shell's.
const tryID = ^uint64(0)

// trySteps bounds how often what an input brings about has to be saved before
// nothing more follows from it.
const trySteps = 16

// Try tells what a command would bring about, without anything of it being done: the
// decisions of the command, and those that would follow at once, before time passes
// or anybody says anything. It does not change s.
func Try(s State, c Command) Outcome {
	c.ID = tryID
	s = s.clone()
	s.PersistRetry, s.PersistError = 0, "" // everything can be saved
	for i := 0; s.Saving.Seq != 0 && i < trySteps; i++ {
		s, _ = Step(s, Persisted{Seq: s.Saving.Seq}) // what was decided before is none of its doing
	}
	var o Outcome
	var in Input = c
	for range trySteps {
		var effects []Effect
		s, effects = Step(s, in)
		o.Take(effects)
		for _, e := range effects {
			if r, ok := e.(Reply); ok && r.ID == tryID {
				o.Reply = r
			}
		}
		if s.Saving.Seq == 0 {
			break
		}
		in = Persisted{Seq: s.Saving.Seq}
	}
	return o
}
