package options

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Reasons of a Problem.
const (
	ReasonUnknownOption   = "unknown_option"
	ReasonDuplicateOption = "duplicate_option"
	ReasonMissingValue    = "missing_value"
	ReasonInvalidValue    = "invalid_value"
	ReasonOutOfRange      = "out_of_range"
	ReasonMissingOption   = "missing_option"
	ReasonSyntax          = "syntax"
	ReasonTooLarge        = "too_large"
	ReasonTooManyProblems = "too_many_problems"
)

// MaxText is the longest file in bytes; a ConfigMap is no longer.
const MaxText = 1 << 20

// maxLine and maxName keep what is reported of a file small enough to be sent.
const (
	maxLine = 4096
	maxName = 64
)

// maxProblems bounds what is reported of one file: what is no options file at
// all would otherwise be reported line by line.
const maxProblems = 100

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	File    string // empty: not from a file
	Line    int    // from 1; 0: the file as a whole
	Key     string // empty: no option is meant
	Reason  string // one of the Reason constants
	Message string // what is wrong and what would be right, a clause after the key
}

// Error returns "file:line: key message".
func (p Problem) Error() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d", p.Line)
		}
		b.WriteString(": ")
	}
	if p.Key != "" {
		b.WriteString(p.Key + " ")
	}
	b.WriteString(p.Message)
	return b.String()
}

// ParseError is every problem of a configuration, in the order of its lines.
type ParseError struct{ Problems []Problem }

// Error returns all problems, separated by "; ".
func (e *ParseError) Error() string {
	msgs := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		msgs[i] = p.Error()
	}
	return strings.Join(msgs, "; ")
}

// Unwrap returns the problems one by one, for errors.As.
func (e *ParseError) Unwrap() []error {
	errs := make([]error, len(e.Problems))
	for i, p := range e.Problems {
		errs[i] = p
	}
	return errs
}

// Setting is one line of a file that names an option.
type Setting struct {
	Key   string
	Value string // as written, without surrounding space
	Line  int    // from 1
}

// Parse reads the text of an options file on top of base. file is its name for
// messages. Lines are "name = value"; "name =" switches a boolean on; # starts a
// comment at the start of a line or after a space.
//
// It is all or nothing: with any problem it returns base, the lines that could
// be read, and a *ParseError with every problem.
func Parse(file string, text []byte, base Options) (Options, []Setting, error) {
	var (
		opts     = base
		settings []Setting
		problems []Problem
		first    = make(map[string]int) // key -> line
	)
	opts.IndexServers = slices.Clone(base.IndexServers)
	problem := func(line int, key, reason, format string, args ...any) {
		problems = append(problems, Problem{file, line, key, reason, fmt.Sprintf(format, args...)})
	}
	if len(text) > MaxText {
		problem(0, "", ReasonTooLarge, "has %d bytes; an options file has at most %d", len(text), MaxText)
		return base, nil, &ParseError{problems}
	}

	n := 0
	for line := range bytes.Lines(text) {
		n++
		if len(problems) == maxProblems {
			problem(n, "", ReasonTooManyProblems, "more than %d problems; the rest of the file was not read", maxProblems)
			break
		}
		key, value, empty, wrong := splitLine(line)
		switch {
		case wrong != "":
			problem(n, "", ReasonSyntax, "%s", wrong)
			continue
		case empty:
			continue
		}
		settings = append(settings, Setting{key, value, n})
		s, old := lookup(key), ignoredSpec(key)
		if s == nil && old == nil {
			if why := reservedOption(key); why != "" {
				problem(n, key, ReasonReserved, "%s", why)
			} else {
				problem(n, key, ReasonUnknownOption, "%s", unknown(key))
			}
			continue
		}
		if at, again := first[key]; again {
			problem(n, key, ReasonDuplicateOption, "is also on line %d; remove one of them", at)
			continue
		}
		first[key] = n
		var r *refusal
		if s != nil {
			r = s.set(&opts, value)
		} else {
			r = old.check(value)
		}
		if r != nil {
			problem(n, key, r.reason, "%s", r.message)
		}
	}
	if opts.oneIndex(func(key string) bool { return first[key] > 0 }) {
		problem(first[keyIndexName], keyIndexName, ReasonConflict, "%s", bothIndexes)
	}
	problems = append(problems, opts.engineConflicts(file, first)...)
	if len(problems) > 0 {
		return base, settings, &ParseError{problems}
	}
	return opts, settings, nil
}

// splitLine takes a line apart; wrong tells why it cannot be.
func splitLine(line []byte) (key, value string, empty bool, wrong string) {
	if len(line) > maxLine {
		return "", "", false, fmt.Sprintf("the line has %d bytes; a line has at most %d", len(line), maxLine)
	}
	if !utf8.Valid(line) {
		return "", "", false, "the line is not UTF-8 text"
	}
	s := strings.TrimSpace(string(line))
	if i := strings.IndexFunc(s, func(r rune) bool { return unicode.IsControl(r) && r != '\t' }); i >= 0 {
		return "", "", false, fmt.Sprintf("the line has a control character (0x%02x)", s[i])
	}
	s = strings.TrimSpace(cutComment(s))
	if s == "" {
		return "", "", true, ""
	}
	key, value, found := strings.Cut(s, "=")
	key, value = strings.TrimSpace(key), strings.TrimSpace(value)
	switch {
	case !found:
		return "", "", false, fmt.Sprintf("%q is not \"name = value\"", shorten(s))
	case key == "":
		return "", "", false, fmt.Sprintf("%q has no option name before the =; write \"name = value\"", shorten(s))
	case strings.ContainsAny(key, " \t") || len(key) > maxName:
		return "", "", false, fmt.Sprintf("%q is not an option name; write one \"name = value\" a line", shorten(key))
	}
	return key, value, false, ""
}

func cutComment(s string) string {
	for i := range len(s) {
		if s[i] == '#' && (i == 0 || s[i-1] == ' ' || s[i-1] == '\t') {
			return s[:i]
		}
	}
	return s
}

// unknown says what to do about a name that is no option.
func unknown(key string) string {
	names := make([]string, len(table))
	for i, s := range table {
		names[i] = s.Key
	}
	key = strings.TrimLeft(key, "-")
	if name, ok := strings.CutPrefix(key, EnginePrefix); ok {
		return unknownEngine(name)
	}
	for _, name := range []string{strings.ToLower(strings.ReplaceAll(key, "_", "-")), "rocksdb-" + key, EnginePrefix + key} {
		if slices.Contains(names, name) {
			return "is not an option; did you mean " + name + "?"
		}
	}
	if m := didYouMean(key, names); m != "" {
		return "is not an option" + m
	}
	return "is not an option; flared --help lists them"
}

// didYouMean names the candidate nearest to word, if one is near enough to be
// what was meant.
func didYouMean(word string, candidates []string) string {
	if len(word) > maxName {
		return ""
	}
	best, nearest := "", max(2, len(word)/3)+1
	for _, c := range candidates {
		d := distance(word, c)
		// A name that was cut off, or written without its unit, is near whatever its length.
		if len(word) >= 4 && (strings.HasPrefix(c, word) || strings.HasSuffix(c, word)) {
			d = min(d, 1)
		}
		if d < nearest {
			best, nearest = c, d
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + best + "?"
}

// distance is the number of single-byte edits between a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitute := diagonal
			if a[i] != b[j] {
				substitute++
			}
			diagonal = row[j+1]
			row[j+1] = min(substitute, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
