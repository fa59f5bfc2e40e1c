# bash completion of minipull; to be sourced, as: source <(minipull completion bash)
_minipull() {
    # COMP_WORDS is split at : = and @, and so put together again where no blank was typed.
    local left=${COMP_LINE:0:COMP_POINT} words=() word number line
    for ((number = 0; number <= COMP_CWORD; number++)); do
        word=${COMP_WORDS[number]}
        if [[ $number == 0 || $left == [[:space:]]* ]]; then
            left=${left#"${left%%[![:space:]]*}"} words+=("")
        fi
        [[ $number != "$COMP_CWORD" ]] || word=$left
        left=${left#"$word"} words[${#words[@]}-1]+=$word
    done
    word=${words[${#words[@]}-1]}
    # What readline has before the last of its own breaks stays, and is left out of the answers.
    local known=${word%"${word##*["${COMP_WORDBREAKS//]/}"]}"}
    words=("${words[@]/#/+}") COMPREPLY=()
    while IFS= read -r line; do
        if [[ $line == :files* ]]; then
            local prefix=${line#:files} path
            prefix=${prefix# }
            compopt -o filenames
            while IFS= read -r path; do
                path=$prefix$path COMPREPLY+=("${path#"$known"}")
            done < <(compgen -f -- "${word#"$prefix"}")
        else
            line=${line%%$'\t'*} COMPREPLY+=("${line#"$known"}")
        fi
    done < <(PROGRAM completion bash "${words[@]:1}" 2>/dev/null)
    [[ ${#COMPREPLY[@]} != 1 || ${COMPREPLY[0]} != *[/:=] ]] || compopt -o nospace
}
complete -F _minipull minipull
