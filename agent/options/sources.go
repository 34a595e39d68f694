package options

// Source is where the value of an option comes from.
type Source uint8

const (
	// FromDefault: nothing gives it.
	FromDefault Source = iota + 1
	// FromFile: flared's own configuration file.
	FromFile
	// FromAgent: the text that the agent sent.
	FromAgent
	// FromCommandLine: flared's command line.
	FromCommandLine
)

// Sources are the sources of options, by name; those of FromDefault are left out.
type Sources map[string]Source

// Of returns the source of an option.
func (s Sources) Of(key string) Source {
	if from, ok := s[key]; ok {
		return from
	}
	return FromDefault
}

// SourcesOf tells which source wins for each option, of those that name it: the
// file, the agent's text, the command line.
func SourcesOf(inFile map[string]bool, inText []Setting, line *CommandLine) Sources {
	s := Sources{}
	for key := range inFile {
		s[key] = FromFile
	}
	for _, set := range inText {
		s[set.Key] = FromAgent
	}
	for i := range table {
		if key := table[i].Key; line.Has(key) {
			s[key] = FromCommandLine
		}
	}
	return s
}

// Changed returns the sources of the options in force once those of wanted are that
// can be: an option that waits for a restart keeps its own.
func (s Sources) Changed(inForce, wanted Options, sources Sources) Sources {
	next := Sources{}
	for i := range table {
		t := &table[i]
		from := sources
		if !t.Live && t.get(&inForce) != t.get(&wanted) {
			from = s
		}
		if f, ok := from[t.Key]; ok {
			next[t.Key] = f
		}
	}
	return next
}
