package text

import (
	"strconv"
	"strings"
)

// Replies, complete lines.
const (
	ReplyOK        = "OK\r\n"
	ReplyEnd       = "END\r\n"
	ReplyStored    = "STORED\r\n"
	ReplyNotStored = "NOT_STORED\r\n"
	ReplyExists    = "EXISTS\r\n"
	ReplyNotFound  = "NOT_FOUND\r\n"
	ReplyDeleted   = "DELETED\r\n"
	ReplyTouched   = "TOUCHED\r\n"
	ReplyError     = "ERROR\r\n"

	ReplyNoPartition     = "SERVER_ERROR no partition available\r\n"
	ReplyProxyFailure    = "SERVER_ERROR proxy failure\r\n" // the write was not handed to the partition's master
	ReplyProxyError      = "SERVER_ERROR proxy error\r\n"   // it was, but the outcome is not known
	ReplyIOError         = "SERVER_ERROR i/o error\r\n"
	ReplyDatabaseBusy    = "SERVER_ERROR database busy\r\n"
	ReplyInterrupted     = "SERVER_ERROR operation interrupted\r\n"
	ReplyUnknownError    = "SERVER_ERROR unknown error\r\n"
	ReplyStorageError    = "SERVER_ERROR storage error\r\n"
	ReplyNodeSyncError   = "SERVER_ERROR node sync error\r\n"
	ReplyFormatError     = "CLIENT_ERROR format error\r\n"
	ReplyThreadNotFound  = "CLIENT_ERROR thread not found\r\n"
	ReplyAddFailed       = "SERVER_ERROR failed to add node\r\n"
	ReplyRemoveFailed    = "SERVER_ERROR failed to remove node\r\n"
	ReplyRoleFailed      = "SERVER_ERROR failed to set role (and balance)\r\n"
	ReplyStateFailed     = "SERVER_ERROR failed to set state\r\n"
	ReplyShutdownFailed  = "SERVER_ERROR failed to shutdown\r\n"
	ReplyReplicationTime = "SERVER_ERROR replication timeout\r\n"
	ReplyTooLarge        = "SERVER_ERROR object too large for cache\r\n"
	ReplyTooManyHops     = "SERVER_ERROR too many hops\r\n"
)

const crlf = "\r\n"

// AppendValue appends the VALUE block of a get, or with withVersion of a gets.
func AppendValue(dst, key []byte, flags uint32, data []byte, version uint64, withVersion bool) []byte {
	dst = appendValueHead(dst, key, flags, len(data))
	if withVersion {
		dst = appendUint(dst, version)
	}
	return appendData(dst, data)
}

// AppendDumpValue appends the VALUE block of a dump. The expiry time is absolute, 0 for never.
func AppendDumpValue(dst, key []byte, flags uint32, data []byte, version uint64, expire int64) []byte {
	dst = appendValueHead(dst, key, flags, len(data))
	dst = appendUint(dst, version)
	dst = appendInt(dst, expire)
	return appendData(dst, data)
}

func appendValueHead(dst, key []byte, flags uint32, size int) []byte {
	dst = append(dst, "VALUE "...)
	dst = append(dst, key...)
	dst = appendUint(dst, uint64(flags))
	return appendUint(dst, uint64(size))
}

func appendData(dst, data []byte) []byte {
	dst = append(dst, crlf...)
	dst = append(dst, data...)
	return append(dst, crlf...)
}

// AppendKey appends a KEY line of keys or dump_key.
func AppendKey(dst, key []byte) []byte {
	dst = append(dst, "KEY "...)
	dst = append(dst, key...)
	return append(dst, crlf...)
}

// AppendNumber appends the reply of incr and decr.
func AppendNumber(dst []byte, n uint64) []byte {
	dst = strconv.AppendUint(dst, n, 10)
	return append(dst, crlf...)
}

// AppendStat appends a STAT line.
func AppendStat(dst []byte, name, value string) []byte {
	dst = append(dst, "STAT "...)
	dst = append(dst, name...)
	dst = append(dst, ' ')
	dst = append(dst, value...)
	return append(dst, crlf...)
}

// AppendVersion appends the reply of version.
func AppendVersion(dst []byte, version string) []byte {
	dst = append(dst, "VERSION "...)
	dst = append(dst, version...)
	return append(dst, crlf...)
}

// AppendServerError appends SERVER_ERROR with a text, in which line ends become spaces.
func AppendServerError(dst []byte, text string) []byte { return appendError(dst, "SERVER_ERROR", text) }

// AppendClientError appends CLIENT_ERROR with a text, in which line ends become spaces.
func AppendClientError(dst []byte, text string) []byte { return appendError(dst, "CLIENT_ERROR", text) }

var oneLine = strings.NewReplacer("\r", " ", "\n", " ")

func appendError(dst []byte, word, text string) []byte {
	dst = append(dst, word...)
	if text != "" {
		dst = append(dst, ' ')
		dst = append(dst, oneLine.Replace(text)...)
	}
	return append(dst, crlf...)
}

// appendUint appends a space and the number.
func appendUint(dst []byte, n uint64) []byte { return strconv.AppendUint(append(dst, ' '), n, 10) }

// appendInt appends a space and the number.
func appendInt(dst []byte, n int64) []byte { return strconv.AppendInt(append(dst, ' '), n, 10) }

func appendWord(dst []byte, w string) []byte { return append(append(dst, ' '), w...) }
