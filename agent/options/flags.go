package options

import (
	"errors"
	"flag"
	"fmt"
)

// CommandLine holds the options given on a command line. They win over those
// of a file, now and whenever a new file is applied.
type CommandLine struct{ values map[string]string }

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
			return nil
		}
		if s.Type == "boolean" {
			fs.BoolFunc(s.Key, s.usage(), set)
		} else {
			fs.Func(s.Key, s.usage(), set)
		}
	}
	return c
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
	return o
}
