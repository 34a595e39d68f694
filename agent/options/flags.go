package options

import (
	"errors"
	"flag"
	"fmt"
	"slices"
)

// CommandLine holds the options given on a command line. They win over those
// of a file, now and whenever a new file is applied.
type CommandLine struct {
	values  map[string]string
	ignored []string // names given that have no effect
}

// Flags defines a flag for every option. The result is filled by fs.Parse.
func Flags(fs *flag.FlagSet) *CommandLine {
	c := &CommandLine{values: make(map[string]string)}
	for i := range table {
		s := &table[i]
		set := func(value string) error {
			var scratch Options
			if r := s.set(&scratch, value); r != nil {
				return errors.New(r.message)
			}
			c.values[s.Key] = s.get(&scratch)
			if c.Has(keyIndexServers) && c.Has(keyIndexName) {
				return errors.New(keyIndexName + " " + bothIndexes)
			}
			return nil
		}
		if s.Type == "boolean" {
			fs.BoolFunc(s.Key, s.usage(), set)
		} else {
			fs.Func(s.Key, s.usage(), set)
		}
	}
	for i := range ignored {
		s := &ignored[i]
		set := func(value string) error {
			if r := s.check(value); r != nil {
				return errors.New(r.message)
			}
			if !slices.Contains(c.ignored, s.Key) {
				c.ignored = append(c.ignored, s.Key)
			}
			return nil
		}
		if usage := "accepted without effect: " + s.Doc; s.Type == "boolean" {
			fs.BoolFunc(s.Key, usage, set)
		} else {
			fs.Func(s.Key, usage, set)
		}
	}
	return c
}

// WithoutEffect returns the names on the command line that are accepted without effect.
func (c *CommandLine) WithoutEffect() []string {
	if c == nil {
		return nil
	}
	return c.ignored
}

// usage is the flag's help; the word in back quotes is what flag shows after its name.
func (s *spec) usage() string {
	u := s.Doc
	switch {
	case s.Unit != "":
		u = fmt.Sprintf("%s, in `%s` from %d to %d", u, s.Unit, s.Min, s.Max)
	case s.Type == "integer":
		u = fmt.Sprintf("%s, a `number` from %d to %d", u, s.Min, s.Max)
	case s.Type != "boolean":
		u = fmt.Sprintf("%s (`%s`)", u, s.Type)
	}
	if s.Default != "" {
		u += " (default " + s.Default + ")"
	}
	return u
}

// Has reports whether the command line gives the option.
func (c *CommandLine) Has(key string) bool {
	if c == nil {
		return false
	}
	_, ok := c.values[key]
	return ok
}

// Over returns o with the options of the command line in place of its own.
func (c *CommandLine) Over(o Options) Options {
	if c == nil {
		return o
	}
	for i := range table {
		s := &table[i]
		if v, ok := c.values[s.Key]; ok {
			s.set(&o, v) // was checked when it was parsed
		}
	}
	o.oneIndex(c.Has)
	return o
}
