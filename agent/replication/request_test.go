package replication

import (
	"errors"
	"strings"
	"testing"
)

func TestRequest(t *testing.T) {
	for line, want := range map[string]FollowRequest{
		"replicate n1:12121 0 - 0 0 1\r\n":        {Self: "n1:12121"},
		"replicate n1:12121 3 abcdef 7 123 1\r\n": {Self: "n1:12121", Partition: 3, History: "abcdef", LSN: at(7, 123)},
	} {
		if got := string(AppendRequest(nil, want)); got != line {
			t.Errorf("AppendRequest = %q, want %q", got, line)
		}
		got, err := ParseRequest(strings.Fields(line)[1:])
		if err != nil || got != want {
			t.Errorf("ParseRequest(%q) = %+v, %v", line, got, err)
		}
	}
	for args, reason := range map[string]string{
		"":                                  "invalid_request",
		"n1:1 0 - 0 0":                      "invalid_request",
		"n1:1 0 - 0 0 1 x":                  "invalid_request",
		"n1:1 0 - 0 0 2":                    "unsupported_version",
		"n1 0 - 0 0 1":                      "invalid_request",
		"n1:1 -1 - 0 0 1":                   "invalid_request",
		"n1:1 x - 0 0 1":                    "invalid_request",
		"n1:1 0 - -1 0 1":                   "invalid_request",
		"n1:1 0 - 0 1e3 1":                  "invalid_request",
		"n1:1 0 - 0 99999999999999999999 1": "invalid_request",
	} {
		_, err := ParseRequest(strings.Fields(args))
		var e *Error
		if !errors.As(err, &e) || e.Reason != reason || reasonOf(err) != reason {
			t.Errorf("ParseRequest(%q) = %v, want reason %s", args, err, reason)
		}
	}
}
